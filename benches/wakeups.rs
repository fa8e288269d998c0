//! Batches of requests through a device's I/O thread, for `tests/wakeups.rs`, which counts the system calls of that
//! thread: `wakeups BATCHES`, or `wakeups BATCHES sync|uring FILE` for a disk whose bytes are in a file. Prints the number of
//! requests.

mod support;

use ossature::block::{EngineKind, NullDisk, OpenMode, RawFile, RawOptions};
use support::rings::{BATCH, ThreadRig};

fn main() {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let batches: u32 = args.first().expect("the number of batches").parse().expect("a number");
    let mut rig = match &args[1..] {
        [] => ThreadRig::blk_on(NullDisk::new(1 << 16), "io"),
        [engine, file] => {
            let engine = if engine == "uring" { EngineKind::Uring } else { EngineKind::Sync };
            let options = RawOptions::new(OpenMode::ReadOnly).engine(engine);
            ThreadRig::blk_on(RawFile::open(file, options).expect("the disk"), "io")
        }
        _ => panic!("wakeups BATCHES [sync|uring FILE]"),
    };
    (0..batches).for_each(|_| rig.batch());
    println!("{}", batches * u32::from(BATCH));
}
