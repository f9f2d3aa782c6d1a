"""Write a page's part about one report: ``python docs/results.py NAME REPORT "FACTS" TABLE…``.

REPORT is a folder that `oodflow report` wrote. FACTS say how it was made: command, machine, time.
The tables are taken as they are; the commit comes from the report's provenance. The part is
``docs/results/NAME.md``, which ``docs/results.md`` includes.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main(name: str, report: str, facts: str, *tables: str) -> None:
    """Write the part; FileNotFoundError for a table that the report does not have."""
    folder = Path(report)
    runs = json.loads((folder / "provenance.json").read_text())["runs"].values()
    commits = sorted({run["git_commit"][:7] for run in runs if run["git_commit"]})
    made = f"{facts} Commit {', '.join(commits)}." if commits else facts
    parts = [made]
    for table in tables:
        text = (folder / "tables" / f"{table}.md").read_text().strip()
        title, _, rest = text.partition("\n")
        parts.append(f"**{title.lstrip('# ')}**\n\n{rest.strip()}")
    HERE.joinpath("results", f"{name}.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
