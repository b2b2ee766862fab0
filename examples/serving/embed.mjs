// Photos to embeddings by onnxruntime in Node: npm install onnxruntime-node sharp
//
//   siglip-jax export --model=runs/shop --dataset=data/shop --output=runs/shop-onnx/images.onnx --takes=images
//   node embed.mjs runs/shop-onnx/images.onnx a.jpg b.png      // a line of JSON for each photo: its embedding
//
// Alpha is dropped and an orientation in EXIF ignored, as in training; the graph resizes. sharp reads no BMP.
import ort from "onnxruntime-node";
import sharp from "sharp";

const [model, ...photos] = process.argv.slice(2);
const session = await ort.InferenceSession.create(model);
for (const photo of photos) {
  const { data, info } = await sharp(photo).removeAlpha().toColourspace("srgb").raw().toBuffer({ resolveWithObject: true });
  // Photos of one size may go in together, as [n, height, width, 3].
  const images = new ort.Tensor("uint8", new Uint8Array(data), [1, info.height, info.width, info.channels]);
  const { embedding } = await session.run({ images });
  console.log(JSON.stringify(Array.from(embedding.data)));
}
