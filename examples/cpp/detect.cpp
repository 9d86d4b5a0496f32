// An image in, its boxes or classes out. Build it with
//
//     g++ -std=c++17 -O2 detect.cpp $(dnc embed --flags) -o detect
//     ./detect yolov4-tiny.engine dog.ppm
//
// PPM and PGM files are read here. An application has its own in the place of read_netpbm: stbi_load of stb_image,
// OpenCV's imread (which gives DNC_BGR8), a camera.

#include <dnc.hpp>
#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Picture {
    std::vector<unsigned char> pixels;
    dnc::Image image;
};

// Binary PPM (P6) or PGM (P5) of 8 bits: three numbers, comments between them, then the pixels.
Picture read_netpbm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string magic;
    file >> magic;
    std::size_t header[3] = {0, 0, 0};
    for (std::size_t& number : header) {
        while ((file >> std::ws) && file.peek() == '#') file.ignore(1 << 16, '\n');
        file >> number;
    }
    file.get();
    const bool color = magic == "P6";
    const std::size_t side = 1 << 16;
    if (!file || (!color && magic != "P5") || header[2] != 255 || header[0] > side || header[1] > side) {
        throw std::runtime_error(path + ": no binary PPM or PGM of 8 bits");
    }
    Picture picture;
    picture.pixels.resize(header[0] * header[1] * (color ? 3 : 1));
    file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
    if (!file) throw std::runtime_error(path + ": the file is too short");
    picture.image = {picture.pixels.data(), header[0], header[1], color ? DNC_RGB8 : DNC_GRAY8, 0};
    return picture;
}

}  // namespace

int main(int argc, char** argv) {
    if (argc < 3 || argc > 4) {
        std::cerr << "usage: " << argv[0] << " ENGINE IMAGE [CONFIDENCE]\n";
        return 2;
    }
    try {
        const dnc::Engine engine(argv[1]);
        const Picture picture = read_netpbm(argv[2]);
        if (engine.task() == DNC_TASK_CLASSIFY) {
            for (const dnc::Class& each : engine.classify(picture.image)) {
                std::cout << each.label << ' ' << each.confidence << '\n';
            }
            return 0;
        }
        for (const dnc::Box& box : engine.detect(picture.image, argc > 3 ? std::stof(argv[3]) : 0.25f)) {
            std::cout << box.label << ' ' << box.confidence << ' ' << box.left << ' ' << box.top << ' ' << box.right
                      << ' ' << box.bottom << '\n';
        }
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
