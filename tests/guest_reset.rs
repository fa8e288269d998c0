//! A Debian guest in the middle of reads and output goes back to a checkpoint in place, and does the same each time.

mod support;

use std::fs;
use std::sync::Arc;

use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::{Blk, MmioInterrupt, SharedLoop};
use ossature::vmm::Kvm;
use ossature::vmm::machine::LifecycleState;
use support::{Guest, Transport, Virtio};

const ROUNDS: u32 = 20;

#[test]
fn a_guest_under_load_goes_back_twenty_times() {
    goes_back(Transport::Mmio);
}

#[test]
fn a_guest_under_load_on_pci_goes_back_twenty_times() {
    goes_back(Transport::Pci);
}

fn goes_back(transport: Transport) {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("disk");
    let data: Vec<u8> = (0..4_u32 << 18).flat_map(|n| n.wrapping_mul(0x9e37_79b1).to_le_bytes()).collect();
    fs::write(&image, &data).unwrap();
    // Reads that never end; and for each line an answer, of the disk and of what it remembers.
    let load = "while :; do dd if=/dev/vda of=/dev/null bs=16k iflag=direct 2>/dev/null; done &
        count=0
        printf 'ready\\n'
        while read -r line </dev/console; do
            count=$((count + 1))
            echo \"$line\" >>/dev/shm/lines
            sum=$(dd if=/dev/vda bs=64k count=16 iflag=direct 2>/dev/null | sha256sum | cut -c 1-16)
            printf 'answer %s: %s %d %d. end %s.\\n' \"$line\" \"$sum\" $count $(wc -l </dev/shm/lines) \"$line\"
        done";
    let guest = Guest::new().run("load", load);
    let disk = RawFile::open(&image, OpenMode::ReadOnly).unwrap();
    let disk = Blk::new(disk, "disk".parse::<DiskId>().unwrap());
    let virtio: [Virtio; 1] = [("disk", Box::new(disk), MmioInterrupt::AlwaysSet)];
    let io = Arc::new(SharedLoop::new("io").unwrap());
    let (builder, mut terminal) = guest.machine("reset", transport.plug(virtio, &io));
    let machine = builder.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    terminal.wait_for("ready\n");
    // One answer, so that what it runs is in its memory.
    terminal.type_in("first\n");
    terminal.wait_for(" 1 1. end first.");
    let mut checkpoint = machine.checkpoint().unwrap();
    assert_eq!(machine.state(), LifecycleState::Running);
    let mut answers = Vec::new();
    for round in 0..ROUNDS {
        terminal.type_in(&format!("word{round}\n"));
        let mark = format!("answer word{round}: ");
        terminal.wait_for(&format!(" end word{round}."));
        let text = terminal.log.text();
        let answer = text.split_once(&mark).and_then(|(_, rest)| rest.split_once('.'));
        let (answer, _) = answer.unwrap_or_else(|| panic!("no answer {round}: {text}"));
        answers.push(answer.to_owned());
        machine.reset_to(&mut checkpoint).unwrap();
        assert_eq!(machine.state(), LifecycleState::Running);
    }
    machine.stop().unwrap();
    let text = terminal.log.text();
    assert!(answers[0].ends_with(" 2 2"), "{text}");
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:?}: {text}");
    assert!(
        !text.contains("I/O error") && !text.contains("lockup") && !text.contains("Call Trace"),
        "{text}"
    );
    println!("{ROUNDS} times {:?}", answers[0]);
}
