// Photos to embeddings by onnxruntime in Java 17: com.microsoft.onnxruntime:onnxruntime from Maven Central
//
//   siglip-jax export --model=runs/shop --dataset=data/shop --output=runs/shop-onnx/images.onnx --takes=images
//   java -cp onnxruntime.jar Embed.java runs/shop-onnx/images.onnx a.jpg b.png   // a line for each photo: its embedding
//
// Alpha is dropped and an orientation in EXIF ignored, as in training; the graph resizes. ImageIO reads JPEG, PNG, GIF
// and BMP; for WEBP add a reader such as TwelveMonkeys'.
import ai.onnxruntime.OnnxJavaType;
import ai.onnxruntime.OnnxTensor;
import ai.onnxruntime.OrtEnvironment;
import java.awt.image.BufferedImage;
import java.awt.image.IndexColorModel;
import java.io.File;
import java.nio.ByteBuffer;
import java.util.Arrays;
import java.util.Map;
import javax.imageio.ImageIO;

public class Embed {
  public static void main(String[] arguments) throws Exception {
    var environment = OrtEnvironment.getEnvironment();
    try (var session = environment.createSession(arguments[0])) {
      for (String photo : Arrays.copyOfRange(arguments, 1, arguments.length)) {
        BufferedImage image = ImageIO.read(new File(photo));
        if (image == null) throw new IllegalArgumentException(photo + ": no picture that ImageIO reads");
        // Photos of one size may go in together, as [n, height, width, 3].
        long[] shape = {1, image.getHeight(), image.getWidth(), 3};
        try (var images = OnnxTensor.createTensor(environment, rgb(image), shape, OnnxJavaType.UINT8);
            var found = session.run(Map.of("images", images))) {
          System.out.println(Arrays.toString(((float[][]) found.get("embedding").orElseThrow().getValue())[0]));
        }
      }
    }
  }

  /** The pixels in rows, three bytes each. */
  static ByteBuffer rgb(BufferedImage image) {
    int height = image.getHeight(), width = image.getWidth();
    ByteBuffer bytes = ByteBuffer.allocateDirect(3 * height * width);
    boolean grey = image.getRaster().getNumBands() < 3 && !(image.getColorModel() instanceof IndexColorModel);
    if (grey) { // getRGB would take its levels for linear ones, and make them brighter
      int least = image.getSampleModel().getSampleSize(0) - 8;
      for (int level : image.getRaster().getSamples(0, 0, width, height, 0, (int[]) null)) {
        byte upper = (byte) (level >> least);
        bytes.put(upper).put(upper).put(upper);
      }
      return bytes.rewind();
    }
    for (int colour : image.getRGB(0, 0, width, height, null, 0, width)) {
      bytes.put((byte) (colour >> 16)).put((byte) (colour >> 8)).put((byte) colour);
    }
    return bytes.rewind();
  }
}
