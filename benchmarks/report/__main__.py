"""python -m benchmarks.report"""

from benchmarks.report import rendered, write

for document, text in rendered().items():
    write(document, text)
