//! Grace's kernel probes. What may stand here: O(1) work on what the hook hands over, no policy, no loops over data
//! that others control. `maps.rs` the maps · `emit.rs` the one way into the ring · `kernel.rs` reading kernel
//! structures by offsets from BTF · `probes/` one file per probe.

#![no_std]
#![no_main]

mod emit;
mod kernel;
mod maps;
mod probes;

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

// The helpers that read kernel memory are for GPL-compatible programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
