// The build goes into the Python package, where `peg-rag serve` finds it. File names carry no digest: the server has
// browsers revalidate, and the committed build then changes only where the sources do.
import { createHash } from "node:crypto";
import { cpSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { defineConfig } from "vite";

const OUT = "../peg_rag/serving/web/dist";

/** Leaves a digest of the sources beside the build, so that a test can tell a stale one. */
function digest() {
  return {
    name: "digest",
    closeBundle() {
      const hash = createHash("sha256");
      const names = ["index.html", "package-lock.json", ...sources("src"), ...sources("public")];
      for (const name of names.sort()) hash.update(name + "\n").update(readFileSync(name));
      writeFileSync(`${OUT}/sources.sha256`, hash.digest("hex") + "\n");
    },
  };
}

/**
 * What pdf.js fetches when it meets a page that needs it: its worker, the character maps of Chinese fonts that are not
 * embedded, symbols, and the decoders of scanned pictures (as JavaScript, so that the page needs no right to compile).
 * Scripting inside PDFs is left out.
 */
function pdfFiles() {
  const from = "node_modules/pdfjs-dist";
  const files = {
    "legacy/build/pdf.worker.min.mjs": "worker.js",
    cmaps: "cmaps",
    "standard_fonts/FoxitSymbol.pfb": "fonts/FoxitSymbol.pfb",
    "standard_fonts/FoxitDingbats.pfb": "fonts/FoxitDingbats.pfb",
    "standard_fonts/LICENSE_FOXIT": "fonts/LICENSE_FOXIT",
    "wasm/jbig2_nowasm_fallback.js": "decoders/jbig2_nowasm_fallback.js",
    "wasm/openjpeg_nowasm_fallback.js": "decoders/openjpeg_nowasm_fallback.js",
    "wasm/LICENSE_JBIG2": "decoders/LICENSE_JBIG2",
    "wasm/LICENSE_PDFJS_JBIG2": "decoders/LICENSE_PDFJS_JBIG2",
    "wasm/LICENSE_OPENJPEG": "decoders/LICENSE_OPENJPEG",
    "wasm/LICENSE_PDFJS_OPENJPEG": "decoders/LICENSE_PDFJS_OPENJPEG",
    LICENSE: "LICENSE",
  };
  return {
    name: "pdf-files",
    closeBundle() {
      mkdirSync(`${OUT}/assets/pdf`, { recursive: true });
      for (const [name, place] of Object.entries(files)) {
        cpSync(`${from}/${name}`, `${OUT}/assets/pdf/${place}`, { recursive: true });
      }
    },
  };
}

function sources(folder) {
  return readdirSync(folder).map((name) => `${folder}/${name}`);
}

export default defineConfig({
  base: "./",
  plugins: [pdfFiles(), digest()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: ["chrome123", "firefox128", "safari17.5"],
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    chunkSizeWarningLimit: 600, // pdf.js, which is loaded with the first PDF
    license: { fileName: "assets/licenses.md" },
    rolldownOptions: {
      output: { entryFileNames: "assets/page.js", assetFileNames: "assets/page[extname]", chunkFileNames: "assets/[name].js" },
    },
  },
  server: { proxy: { "^/(assets/pdf|ask|search|info|documents|passages|feedback|health)": "http://127.0.0.1:8000" } },
});
