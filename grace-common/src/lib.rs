//! The bytes that cross from kernel to user side.
#![no_std]
