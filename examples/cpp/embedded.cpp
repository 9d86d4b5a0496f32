// A program with its engine inside: an image on stdin, its boxes on stdout, and no other file is read or written.
//
//     dnc package yolov4-tiny.engine --as-object -o net.o
//     g++ -std=c++17 -O2 embedded.cpp net.o $(dnc embed --flags) -o embedded
//     ./embedded < dog.ppm
//
// With --as-c it is net.c, for every compiler; net.h is written with either. In CMake: add_executable(embedded
// embedded.cpp net.c), which takes C and C++ as languages.

#include <dnc.hpp>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "net.h"

int main() {
    try {
        // The bytes are part of the program, and so there for as long as any engine. They are not copied.
        dnc::Options options;
        options.trust = true;  // they are our own, even if they are machine code (target tvm)
        const dnc::Engine engine = dnc::Engine::from_memory(dnc_net, dnc_net_bytes, options);
        std::string magic;
        std::size_t width = 0, height = 0, white = 0;
        std::cin >> magic >> width >> height >> white;
        std::cin.get();
        if (!std::cin || magic != "P6" || white != 255 || width > 1 << 14 || height > 1 << 14) {
            throw std::runtime_error("no binary PPM of 8 bits on stdin");
        }
        std::vector<char> pixels(width * height * 3);
        if (!std::cin.read(pixels.data(), static_cast<std::streamsize>(pixels.size()))) {
            throw std::runtime_error("the image is cut off");
        }
        for (const dnc::Box& box : engine.detect({pixels.data(), width, height}, 0.15f)) {
            std::cout << box.label << ' ' << box.confidence << ' ' << box.left << ' ' << box.top << ' ' << box.right
                      << ' ' << box.bottom << '\n';
        }
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 1;
    }
}
