"""`python -m benchmarks`: everything that this machine can measure, and docs/performance.md from it."""

import subprocess
import sys
from pathlib import Path

from benchmarks.report import RESULTS

DOCUMENT = Path(__file__).parent.parent / "docs" / "performance.md"
SECTIONS = ("step", "negatives", "growth", "ranks", "student", "data")
_BEGIN, _END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> None:
    """Run each benchmark in a process of its own, then put its table between the marks of the document."""
    for section in SECTIONS:
        subprocess.run([sys.executable, "-W", "ignore", "-m", f"benchmarks.{section}"], check=True)
    write_document()


def write_document() -> None:
    """Put the tables in `benchmarks/results` into docs/performance.md, and the plot beside it."""
    figures = "\n".join((RESULTS / f"{section}.md").read_text(encoding="utf-8") for section in SECTIONS)
    text = DOCUMENT.read_text(encoding="utf-8")
    before, _, rest = text.partition(_BEGIN)
    _, _, after = rest.partition(_END)
    DOCUMENT.write_text(f"{before}{_BEGIN}\n\n{figures}\n{_END}{after}", encoding="utf-8")
    (DOCUMENT.parent / "growth.png").write_bytes((RESULTS / "growth.png").read_bytes())
    sys.stdout.write(f"written to {DOCUMENT}\n")


if __name__ == "__main__":
    main()
