#!/usr/bin/env bash
# Tries the wheels in dist/ on a clean machine: Debian with Python and a C++ compiler, and nothing of this one. As root.
#
#   python -m tools.packages && tools/clean.sh bookworm      # Python 3.11; trixie: 3.13
#
# mmdebstrap unpacks the machine into build/clean/SUITE, which is kept for the next time. pip fetches what the wheels
# depend on, by this machine's network and pip.conf. It ends with 0 where all that is installed finds the same boxes.
set -euo pipefail
cd "$(dirname "$0")/.."
suite=${1:?which suite of Debian: bookworm or trixie}
root=$PWD/build/clean/$suite
if [ ! -d "$root" ]; then
    mkdir -p build/clean
    # Aside, so that one that was interrupted is not taken for a whole one.
    rm -rf "$root.new"
    packages=python3,python3-venv,ca-certificates,g++,cmake,make,pkg-config
    mmdebstrap --variant=minbase --include=$packages "$suite" "$root.new"
    mv "$root.new" "$root"
fi
rm -rf "$root/try"
mkdir "$root/try"
cp -r dist examples "$root/try/"
for file in /etc/resolv.conf /etc/hosts /etc/ssl/certs/ca-certificates.crt /etc/pip.conf; do
    if [ -e "$file" ]; then cp "$file" "$root$file"; fi
done

cat > "$root/try/CMakeLists.txt" <<'EOF'
cmake_minimum_required(VERSION 3.16)
project(app LANGUAGES C CXX)
find_package(dnc_runtime REQUIRED)
add_executable(cxx examples/cpp/detect.cpp)
add_executable(c examples/c/detect.c)
target_link_libraries(cxx dnc::runtime)
target_link_libraries(c dnc::runtime)
EOF

cat > "$root/try/boxes.py" <<'EOF'
"""The boxes of an image, as examples/cpp prints them."""
import sys
import dnc
with dnc.load(sys.argv[1]) as engine:
    width, height = (int(word) for word in open(sys.argv[2], "rb").read(20).split()[1:3])
    for box in engine(sys.argv[2], confidence=0.1):
        print(box.label, f"{box.confidence:.3f}", *box.pixels(width, height))
EOF

cat > "$root/try/try.sh" <<'EOF'
set -euo pipefail
cd /try
python3 --version
short() { awk '{ $2 = sprintf("%.3f", $2); print }'; }

echo "== darknet-compiler: fetch, compile, package"
python3 -m venv compiler
compiler/bin/pip install -q "$(echo dist/darknet_compiler-*.whl)[onnx,openvino]"
compiler/bin/dnc zoo fetch yolov3-tiny
for target in onnx openvino; do compiler/bin/dnc compile yolov3-tiny --target $target -o $target.engine; done
compiler/bin/dnc package onnx.engine -o onnx.dnc
compiler/bin/python -c '
import pathlib, dnc
from PIL import Image
Image.open(pathlib.Path(dnc.__file__).parent / "graph" / "photograph.jpg").convert("RGB").save("picture.ppm")'
compiler/bin/python boxes.py onnx.engine picture.ppm | tee right

echo "== darknet-runtime: alone it says what to install, then it finds the same"
python3 -m venv runtime
runtime/bin/pip install -q dist/darknet_runtime-*.whl
if runtime/bin/python boxes.py onnx.engine picture.ppm 2> said; then exit 1; fi
grep -q 'pip install "darknet-runtime\[onnx\]"' said
runtime/bin/pip install -q "$(echo dist/darknet_runtime-*.whl)[onnx]"
for engine in onnx.engine onnx.dnc; do runtime/bin/python boxes.py $engine picture.ppm | diff right -; done

echo "== libdnc_runtime: C and C++ by flags, pkg-config and CMake"
python3 -m venv native
native/bin/pip install -q dist/libdnc_runtime-*_"$(uname -m)".whl
prefix=$(native/bin/python -m libdnc_runtime)
mkdir built
g++ -std=c++17 examples/cpp/detect.cpp $(native/bin/python -m libdnc_runtime --flags) -o built/flags
gcc -std=c89 examples/c/detect.c $(PKG_CONFIG_PATH=$prefix/lib/pkgconfig pkg-config --cflags --libs dnc_runtime) -o built/pkg-config
cmake -S . -B build -DCMAKE_PREFIX_PATH="$prefix" > /dev/null
cmake --build build > /dev/null
for app in built/* build/c build/cxx; do $app openvino.engine picture.ppm 0.1 | short | diff right -; done
echo "== all of them found the same"
EOF

clean=(env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/try LANG=C.UTF-8 PIP_DISABLE_PIP_VERSION_CHECK=1)
# What is mounted ends with the namespace.
exec unshare --mount --pid --fork -- bash -euc '
    mount -t proc proc "$1/proc"
    mount --rbind /sys "$1/sys"
    mount --rbind /dev "$1/dev"
    exec "${@:2}"' - "$root" "${clean[@]}" chroot "$root" bash /try/try.sh
