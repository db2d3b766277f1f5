"""Networks of published systems, to be trained, compressed and compared with what was published.

Every factory takes the number of classes and of input channels, and the width as a share of the published one; called
with nothing it gives the published network. Images are 32×32, and 28×28 where the factory says so.
"""

from ranksearch.nets.allconv import allconv
from ranksearch.nets.garipov import garipov_conv, garipov_conv_fc
from ranksearch.nets.mobilenet import mobilenet
from ranksearch.nets.plain import flattened, plain
from ranksearch.nets.resnet import resnet18, resnet20
from ranksearch.nets.vgg import vgg11

__all__ = [
    "allconv",
    "flattened",
    "garipov_conv",
    "garipov_conv_fc",
    "mobilenet",
    "plain",
    "resnet18",
    "resnet20",
    "vgg11",
]
