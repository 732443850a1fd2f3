r"""Read a folder with LlamaIndex's `SimpleDirectoryReader` and its default readers; print JSON lines of file and text.

It is a script of its own because llama-index-readers-file asks for pandas < 3 and so wants an environment of its own:

    python -m venv /tmp/readers
    /tmp/readers/bin/pip install llama-index-core llama-index-readers-file docx2txt python-pptx openpyxl ebooklib \
        html2text
    /tmp/readers/bin/python benchmarks/llama_index_text.py FOLDER
"""

import json
import sys

from llama_index.core import SimpleDirectoryReader


def main() -> None:
    for document in SimpleDirectoryReader(sys.argv[1]).load_data():
        row = {"file": document.metadata["file_name"], "text": document.get_content()}
        print(json.dumps(row, ensure_ascii=False))


if __name__ == "__main__":
    main()
