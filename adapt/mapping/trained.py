"""How does a detector start from a trained one that has another backbone?"""

from torchvision.models.detection import RetinaNet

from adapt.mapping.pretrained import Mapper


def map_pyramid_and_heads(source: RetinaNet, target: RetinaNet, mapper: Mapper) -> None:
    """Copy everything but the backbone, in place.

    Lateral convolutions and P6 read as many first channels of the taps as both have; those that
    only the target has are surplus. So are channels of a wider pyramid. Heads copy their first
    convolutions; those that only the target has start as in a new detector.

    Args:
        source: Trained detector.
        target: Detector of the same classes and anchors per cell.
        mapper: Copies, and keeps the account.
    """
    trained = source.state_dict()
    for name, tensor in target.state_dict().items():
        if name.startswith("backbone.body."):
            continue
        if name in trained:
            mapper.copy(name, trained[name], tensor)
        else:
            mapper.report.copied[name] = (0, tensor.numel())
