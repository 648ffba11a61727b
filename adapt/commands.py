"""Which commands look at data sets and weights? (`adapt data`, `adapt weights`)"""

from pathlib import Path
from typing import Annotated

import typer

from adapt.command_line import JsonOpt, show, warn

data_app = typer.Typer(no_args_is_help=True, help="Look at a data set.")


def weights_command(
    source: Annotated[str, typer.Argument(help="Source backbone.")] = "mobilenet_v2",
) -> None:
    """Find or download the ImageNet weights of a source backbone and print their path.

    Example: `adapt weights mobilenet_v2`
    """
    from adapt.network.weights import find_weights

    print(find_weights(source))


@data_app.command("check")
def data_check_command(
    root: Annotated[Path, typer.Argument(help="Data set: a folder in COCO, VOC or YOLO format.")],
    split: Annotated[
        list[str] | None,
        typer.Option("--split", help="Split, repeatable; train, val, and test where there is one."),
    ] = None,
    page: Annotated[
        Path | None, typer.Option("--page", help="HTML file to write it to, with figures.")
    ] = None,
    size: Annotated[
        str, typer.Option("--size", help="Compare boxes with anchors in this input: 256x320.")
    ] = "",
    anchor: Annotated[
        int,
        typer.Option("--anchor", min=0, help="Smallest anchor, with --size; the best one if 0."),
    ] = 0,
    as_json: JsonOpt = False,
) -> None:
    """Open every image and box of a data set and report all that would go wrong.

    The exit code is 1 if a training or an evaluation would be refused.

    Example: `adapt data check datasets/bccd --page bccd.html --size 256x320`
    """
    from adapt.artifacts import make_place
    from adapt.data.check import check_data
    from adapt.data.images import InputSize
    from adapt.detector.fitted_boxes import FittedBoxes
    from adapt.errors import AdaptError
    from adapt.progress import console_stage

    if anchor and not size:
        raise AdaptError(f"--anchor {anchor} needs an input, such as --size 256x320")
    fitting = InputSize.parse(size, "--size") if size else None
    if page:
        make_place(page)  # before all images are opened
    found = check_data(root, split or (), stage=console_stage)
    reports, boxed = found.reports, found.boxed
    boxes = FittedBoxes.of(boxed, fitting, anchor) if fitting and boxed else None
    if page:
        from adapt.data.page import write_page

        write_page(found, root, page, [(boxes.caption, boxes.figure())] if boxes else ())
    anchors = {"anchors": boxes.to_dict()} if boxes else {}
    if as_json:
        show({name: report.to_dict() for name, report in reports.items()} | anchors, as_json=True)
    else:
        for name, report in reports.items():
            show(report.shown(), as_json=False, title=name)
        for name, content in anchors.items():
            show(content, as_json=False, title=name)
        print(found.verdict)  # last: a terminal shows the end of long tables
        if page:
            print(f"page: {page}")
    if found.problems:
        raise typer.Exit(1)


@data_app.command("view")
def data_view_command(
    root: Annotated[Path, typer.Argument(help="Data set: a folder in COCO, VOC or YOLO format.")],
    split: Annotated[str, typer.Option("--split", help="Which split.")] = "train",
    number: Annotated[int, typer.Option("--number", min=1, help="Images to show.")] = 16,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Which images.")] = 0,
    size: Annotated[
        str, typer.Option("--size", help="Show them as a detector of this input trains: 256x320.")
    ] = "",
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--augment",
            help="A change and its probability, repeatable: zoom_out=0.5, crop, photometric, "
            "mosaic. Images are shown before and after.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="PNG file to write.")] = Path("sheet.png"),
    as_json: JsonOpt = False,
) -> None:
    """Draw random images with their boxes on one sheet.

    Example: `adapt data view datasets/bccd --size 256x320 --augment crop=0.5`
    """
    from torchvision.transforms.functional import to_pil_image

    from adapt.artifacts import atomic_path, make_place
    from adapt.data.augmentation import Augmentation
    from adapt.data.coco import load_split
    from adapt.data.drawing import contact_sheet
    from adapt.data.images import InputSize

    shown = InputSize.parse(size, "--size") if size else None
    augmentation = Augmentation.parse(change or (), "--augment")
    images = load_split(root, split, repair=True)
    if repaired := images.repaired():
        warn(repaired)
    make_place(out)
    sheet = to_pil_image(contact_sheet(images, number, seed, shown, augmentation=augmentation))
    with atomic_path(out) as temporary:
        sheet.save(temporary, format="PNG")
    show({"sheet": str(out), "images": min(number, len(images))}, as_json=as_json)
