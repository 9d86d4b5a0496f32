// An image in, its boxes out, through the C interface. Build it with libdnc_runtime (examples/README.md):
//
//	export CGO_CFLAGS="-I$PWD/runtime/include" CGO_LDFLAGS="-L$PWD -ldnc_runtime -Wl,-rpath,$PWD"
//	go build -o detect detect.go
//	./detect yolov4-tiny.engine dog.png
package main

// #include <dnc.h>
// #include <stdlib.h>
import "C"

import (
	"fmt"
	"image"
	"image/draw"
	_ "image/jpeg"
	_ "image/png"
	"os"
	"runtime"
	"strconv"
	"strings"
	"unsafe"
)

// detect gives lines of label, confidence, left, top, right, bottom. One engine serves any number of goroutines.
func detect(engine *C.dnc_engine, picture image.Image, confidence float64) (boxes []string, err error) {
	pixels := image.NewNRGBA(image.Rect(0, 0, picture.Bounds().Dx(), picture.Bounds().Dy()))
	draw.Draw(pixels, pixels.Rect, picture, picture.Bounds().Min, draw.Src)
	data := C.CBytes(pixels.Pix) // What C is given may hold no pointer into Go's memory.
	defer C.free(data)
	given := C.dnc_image{size: C.sizeof_dnc_image, data: data, bytes: C.size_t(len(pixels.Pix)), format: C.DNC_RGBA8}
	given.width, given.height = C.size_t(pixels.Rect.Dx()), C.size_t(pixels.Rect.Dy())
	runtime.LockOSThread() // The last error is the thread's.
	defer runtime.UnlockOSThread()
	var results *C.dnc_results
	if C.dnc_detect(engine, &given, 1, C.float(confidence), 0.45, &results) != C.DNC_OK {
		return nil, fmt.Errorf("%s", C.GoString(C.dnc_last_error()))
	}
	defer C.dnc_results_free(results)
	box := C.dnc_detection{size: C.sizeof_dnc_detection}
	for C.dnc_results_detection(results, 0, C.size_t(len(boxes)), &box) == C.DNC_OK {
		place := fmt.Sprint(box.left, box.top, box.right, box.bottom)
		boxes = append(boxes, fmt.Sprintf("%s %v %s", C.GoString(box.label), box.confidence, place))
	}
	return boxes, nil
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func main() {
	if len(os.Args) < 3 {
		check(fmt.Errorf("usage: detect ENGINE IMAGE [CONFIDENCE]"))
	}
	file, err := os.Open(os.Args[2])
	check(err)
	defer file.Close()
	picture, _, err := image.Decode(file)
	check(err)
	confidence, err := strconv.ParseFloat(append(os.Args, "0.25")[3], 32)
	check(err)
	runtime.LockOSThread()
	path := C.CString(os.Args[1])
	defer C.free(unsafe.Pointer(path))
	var engine *C.dnc_engine
	if C.dnc_open(path, nil, &engine) != C.DNC_OK {
		check(fmt.Errorf("%s", C.GoString(C.dnc_last_error())))
	}
	defer C.dnc_close(engine)
	boxes, err := detect(engine, picture, confidence)
	check(err)
	fmt.Println(strings.Join(boxes, "\n"))
}
