//! The program `grace`.

fn main() {}
