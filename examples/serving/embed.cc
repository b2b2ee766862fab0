// Decoded photos to embeddings by onnxruntime in C++17.
//
//   siglip-jax export --model=runs/shop --dataset=data/shop --output=runs/shop-onnx/images.onnx --takes=images
//   g++ -std=c++17 embed.cc -I ONNXRUNTIME/include -L ONNXRUNTIME/lib -lonnxruntime -o embed
//   ./embed runs/shop-onnx/images.onnx a.ppm b.ppm      // a line of JSON for each photo: its embedding
//
// A photo is a binary PPM, which is RGB pixels behind a line of sizes; give what your JPEG decoder gives in its place.
// Alpha is dropped and an orientation in EXIF ignored, as in training; the graph resizes.
#include <onnxruntime_cxx_api.h>

#include <cstdint>
#include <cstdio>
#include <fstream>
#include <stdexcept>
#include <string>
#include <vector>

struct Photo {
  int64_t height, width;
  std::vector<uint8_t> pixels;  // [height, width, 3]
};

Photo read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string kind;
  Photo photo;
  int most = 0;
  if (!(file >> kind >> photo.width >> photo.height >> most) || kind != "P6" || most != 255)
    throw std::runtime_error(path + ": not a binary PPM of 8 bits");
  file.get();
  photo.pixels.resize(photo.height * photo.width * 3);
  if (!file.read(reinterpret_cast<char*>(photo.pixels.data()), photo.pixels.size()))
    throw std::runtime_error(path + ": ends too early");
  return photo;
}

int main(int count, char** arguments) try {
  if (count < 3) throw std::runtime_error("expected MODEL.onnx PHOTO.ppm ...");
  Ort::Env environment(ORT_LOGGING_LEVEL_WARNING, "embed");
  Ort::Session session(environment, arguments[1], Ort::SessionOptions{nullptr});
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const char* inputs[] = {"images"};
  const char* outputs[] = {"embedding"};
  for (int each = 2; each < count; ++each) {
    Photo photo = read_ppm(arguments[each]);
    // Photos of one size may go in together, as [n, height, width, 3].
    const int64_t shape[] = {1, photo.height, photo.width, 3};
    auto images = Ort::Value::CreateTensor<uint8_t>(memory, photo.pixels.data(), photo.pixels.size(), shape, 4);
    auto found = session.Run(Ort::RunOptions{nullptr}, inputs, &images, 1, outputs, 1);
    const float* embedding = found[0].GetTensorData<float>();
    const size_t width = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
    for (size_t i = 0; i < width; ++i) std::printf("%s%.9g", i ? ", " : "[", embedding[i]);
    std::puts("]");
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
