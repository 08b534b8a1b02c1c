//! `ImageConverter` backends.

pub mod qemu_img;

pub use qemu_img::{QemuImg, QemuImgConfig};
