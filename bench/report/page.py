"""How do the sections become one HTML file that needs no other?"""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader

from adapt.artifacts import make_place, write_text
from adapt.progress import Progress, silent
from bench.report.accuracy import accuracy
from bench.report.curves import curves
from bench.report.drawing import styles
from bench.report.evolution import evolution
from bench.report.examples import examples
from bench.report.folder import Folder
from bench.report.found import read_found
from bench.report.networks import networks
from bench.report.overview import overview, verdict
from bench.report.parts import Section
from bench.report.prediction import prediction
from bench.report.provenance import provenance

PAGE = "index.html"


def write_page(path: Path, progress: Progress = silent) -> Path:
    """Write the page of a run or a benchmark from its files; nothing is measured or detected.

    Args:
        path: Folder of a run, of one of its devices, or of a report.
        progress: Told while intervals of AP are computed.

    Returns:
        ``index.html`` in the folder of the report.

    Raises:
        AdaptError: If the folder holds no report, a file is damaged, or nothing can be written.
    """
    folder = Folder.open(path)
    page = folder.report / PAGE
    make_place(page)
    found = read_found(folder, progress)
    drawn = styles(folder.names)
    sections = [
        overview(folder, found, drawn),
        prediction(folder, drawn),
        accuracy(folder, found, drawn),
        networks(folder),
        evolution(folder),
        curves(folder, drawn),
        examples(folder, found),
        provenance(folder, found),
    ]
    write_text(page, _rendered(title(folder), verdict(folder, found), sections))
    return page


def title(folder: Folder) -> str:
    """Return the name of the run, or of the report's folder."""
    return (folder.run or folder.report).resolve().name


def _rendered(name: str, sentence: str, sections: list[Section]) -> str:
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = templates.get_template("page.html")
    return page.render(title=name, verdict=sentence, sections=sections)
