"""slicemill: from a folder of CT scans to trained tumor segmentation and back.

>>> import slicemill
>>> labels, report = slicemill.segment("ct.nii.gz", "liver.onnx")    # doctest: +SKIP
>>> store = slicemill.open_store("lits-store")                       # doctest: +SKIP
>>> store["volume-17"].image[20]                                     # doctest: +SKIP
"""

from slicemill.api import open_store, segment

__all__ = ["open_store", "segment"]
