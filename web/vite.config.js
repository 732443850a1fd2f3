// The build goes into the Python package, where `peg-rag serve` finds it. File names carry no digest: the server has
// browsers revalidate, and the committed build then changes only where the sources do.
import { createHash } from "node:crypto";
import { readdirSync, readFileSync, writeFileSync } from "node:fs";
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

function sources(folder) {
  return readdirSync(folder).map((name) => `${folder}/${name}`);
}

export default defineConfig({
  base: "./",
  plugins: [digest()],
  build: {
    outDir: OUT,
    emptyOutDir: true,
    target: ["chrome123", "firefox128", "safari17.5"],
    modulePreload: { polyfill: false },
    assetsInlineLimit: 0,
    license: { fileName: "assets/licenses.md" },
    rolldownOptions: {
      output: { entryFileNames: "assets/page.js", assetFileNames: "assets/page[extname]", chunkFileNames: "assets/[name].js" },
    },
  },
  server: { proxy: { "^/(ask|search|info|documents|passages|health)": "http://127.0.0.1:8000" } },
});
