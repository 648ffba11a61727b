"""How does a detector start from a trained one that has another backbone?"""

from torchvision.models.detection import RetinaNet

from adapt.mapping.pretrained import Mapper


def map_pyramid_and_heads(source: RetinaNet, target: RetinaNet, mapper: Mapper) -> None:
    """Copy everything but the backbone, in place.

    Lateral convolutions and P6 read as many first channels of the taps as both have; those that
    only the target has are surplus.

    Args:
        source: Trained detector.
        target: Detector of the same pyramid, heads and classes.
        mapper: Copies, and keeps the account.
    """
    trained = source.state_dict()
    for name, tensor in target.state_dict().items():
        if not name.startswith("backbone.body."):
            mapper.copy(name, trained[name], tensor)
