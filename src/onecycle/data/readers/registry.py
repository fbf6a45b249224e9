"""The formats of data that are read, and the data sets that are known by name. A new reader adds its line here."""

from collections.abc import Callable, Mapping, Sequence

from onecycle.data.readers import cifar10, cifar100, idx
from onecycle.data.readers.cifar10 import Cifar10
from onecycle.data.readers.cifar100 import Cifar100
from onecycle.data.readers.digits import load_digits
from onecycle.data.readers.formats import Format
from onecycle.data.readers.idx import Idx
from onecycle.data.readers.image_folder import ImageFolder
from onecycle.data.readers.named import NamedSet
from onecycle.data.readers.numpy_archive import NumpyArchive
from onecycle.data.readers.parquet import Parquet
from onecycle.data.readers.sets import Sets

IMAGES = ImageFolder()
FORMATS: Sequence[Format] = (Cifar10(), Cifar100(), Idx(), NumpyArchive(), Parquet(), IMAGES)
NAMED: Mapping[str, NamedSet] = {each.name: each for each in (cifar10.NAMED, cifar100.NAMED, *idx.NAMED)}
DEFAULT = cifar10.NAMED
EMBEDDED: Mapping[str, Callable[[], Sets]] = {"digits": load_digits}
