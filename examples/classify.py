"""Classify pictures with onnxruntime and Pillow alone: python classify.py model.onnx cat.jpg dog.png"""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

if len(sys.argv) < 3:
    sys.exit(__doc__)
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
facts = session.get_modelmeta().custom_metadata_map
classes, size = json.loads(facts["classes"]), (int(facts["size"]),) * 2
for path in sys.argv[2:]:
    try:
        picture: Image.Image = Image.open(path)
        picture.draft("RGB", (2 * size[0], 2 * size[1]))  # a large JPEG is decoded at a fraction of its size
        picture = ImageOps.exif_transpose(picture)
    except Exception as error:  # a decoder raises nearly anything on a damaged file
        print(f"{path} cannot be read: {error}", file=sys.stderr)
        continue
    if picture.mode.startswith("I"):  # 16 bits a pixel
        picture = Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8))
    picture = picture.convert("RGBA")
    picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    if facts["fit"] == "crop":
        picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    elif facts["fit"] == "pad":
        picture = ImageOps.pad(picture, size, Image.Resampling.BILINEAR, color="white")
    else:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    probabilities = session.run(["probabilities"], {"images": np.asarray(picture)[None]})[0][0]
    best = probabilities.argsort()[:-4:-1]
    print(path, *(f"{classes[i]} {probabilities[i]:.2%}" for i in best), sep="  ")
