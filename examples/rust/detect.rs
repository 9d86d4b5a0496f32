//! An image in, its boxes out, through the C interface. Build it with libdnc_runtime (examples/README.md):
//!
//!     rustc -O detect.rs -L . -l dnc_runtime -C link-arg=-Wl,-rpath,. -o detect
use std::ffi::{CStr, CString};
use std::os::raw::{c_char, c_int, c_void};
use std::{env, error::Error, fs, mem, process, ptr, str};

#[rustfmt::skip] #[repr(C)]
struct Image {
    size: usize, data: *const u8, bytes: usize, width: usize, height: usize, stride: usize,
    format: c_int, channels: usize,
}

#[rustfmt::skip] #[repr(C)]
struct Detection {
    size: usize, class_id: c_int, label: *const c_char, confidence: f32,
    center_x: f32, center_y: f32, width: f32, height: f32, left: c_int, top: c_int, right: c_int, bottom: c_int,
}

type Handle = *mut c_void;
// As dnc.h declares them; 0 is success.
extern "C" {
    fn dnc_open(folder: *const c_char, options: *const c_void, engine: *mut Handle) -> c_int;
    fn dnc_close(engine: Handle);
    fn dnc_detect(engine: Handle, images: *const Image, count: usize, score: f32, iou: f32, out: *mut Handle) -> c_int;
    fn dnc_results_count(results: Handle, image: usize) -> usize;
    fn dnc_results_detection(results: Handle, image: usize, index: usize, detection: *mut Detection) -> c_int;
    fn dnc_results_free(results: Handle);
    fn dnc_last_error() -> *const c_char;
}

fn text(of: *const c_char) -> String {
    unsafe { CStr::from_ptr(of) }.to_string_lossy().into_owned()
}

/// Pixels, width and height of a binary PPM of 8 bits without comments.
fn read_ppm(path: &str) -> Result<(Vec<u8>, usize, usize), Box<dyn Error>> {
    let data = fs::read(path)?;
    match data.splitn(5, u8::is_ascii_whitespace).collect::<Vec<_>>()[..] {
        [b"P6", width, height, b"255", pixels] => {
            Ok((pixels.to_vec(), str::from_utf8(width)?.parse()?, str::from_utf8(height)?.parse()?))
        }
        _ => Err("no binary PPM of 8 bits".into()),
    }
}

fn detect(path: &str, picture: &str) -> Result<(), Box<dyn Error>> {
    let (pixels, width, height) = read_ppm(picture)?;
    let (size, data, bytes) = (mem::size_of::<Image>(), pixels.as_ptr(), pixels.len());
    let image = Image { size, data, bytes, width, height, stride: 0, format: 0, channels: 0 };
    let (path, mut engine, mut results) = (CString::new(path)?, ptr::null_mut(), ptr::null_mut());
    unsafe {
        let opened = dnc_open(path.as_ptr(), ptr::null(), &mut engine) == 0;
        if !opened || dnc_detect(engine, &image, 1, 0.25, 0.45, &mut results) != 0 {
            dnc_close(engine); // Of a null pointer it does nothing.
            return Err(text(dnc_last_error()).into());
        }
        let mut one = Detection { size: mem::size_of::<Detection>(), ..mem::zeroed() };
        for index in 0..dnc_results_count(results, 0) {
            dnc_results_detection(results, 0, index, &mut one);
            println!("{} {} {} {} {} {}", text(one.label), one.confidence, one.left, one.top, one.right, one.bottom);
        }
        dnc_results_free(results);
        dnc_close(engine);
    }
    Ok(())
}

fn main() {
    let arguments: Vec<String> = env::args().collect();
    let done = match &arguments[..] {
        [_, engine, picture] => detect(engine, picture),
        _ => Err("usage: detect ENGINE IMAGE.ppm".into()),
    };
    if let Err(error) = done {
        eprintln!("{error}");
        process::exit(1)
    }
}
