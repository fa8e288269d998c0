//! Where snapshots come from besides plain files: compressed files, peers at both ends of a stream, working sets.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::{Arc, Mutex};

use ossature_core::machine::{
    PackedSnapshot, RemoteSnapshot, Snapshot, SnapshotSource, WorkingSet, serve_snapshot,
};

use crate::Input;
use crate::snapshot::{check, content, memfd, sample};
use crate::state::crc32;

/// Bytes of a compressed file's header, whose last four are its checksum; before them is that of the index.
const PACKED_HEADER: usize = 32;
/// Snapshots and compressed files are cut into blocks of this size.
const BLOCK: usize = 64 << 10;
/// The most that a client may ask for at once.
const MAX_READ: usize = 2 << 20;

/// Changes of `bytes`: where (2 bytes), how many bytes go, how many come, and these.
pub(crate) fn patch(input: &mut Input<'_>, bytes: &mut Vec<u8>) {
    let mut changes = 0;
    while !input.is_empty() && changes < 16 {
        changes += 1;
        let at = usize::from(input.u16()) % bytes.len().max(1);
        let cut = usize::from(input.u8() & 15);
        let len = usize::from(input.u8() & 31);
        let patch = input.bytes(len).to_vec();
        let end = (at + cut).min(bytes.len());
        bytes.splice(at.min(end)..end, patch);
    }
}

fn file(bytes: &[u8]) -> File {
    let mut file = memfd();
    file.write_all(bytes).expect("a memfd takes it");
    file
}

/// The path of a file that is open.
fn path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn packed_sample() -> &'static [u8] {
    static SAMPLE: OnceLock<Vec<u8>> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("snapshot-fuzz-{}.pack", std::process::id()));
        PackedSnapshot::write(file(sample()), &path).expect("it is packed");
        let bytes = fs::read(&path).expect("it is there");
        fs::remove_file(&path).expect("it is there");
        bytes
    })
}

/// The first byte: 0x01 keeps wrong checksums, 0x02 takes the rest for the whole file; otherwise the rest are changes of a
/// good one. Two bytes say where it is read.
pub fn packed(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let place = usize::from(input.u16());
    let mut bytes = if form & 2 != 0 { input.rest().to_vec() } else { packed_sample().to_vec() };
    if form & 2 == 0 {
        patch(&mut input, &mut bytes);
    }
    if form & 1 == 0 && bytes.len() >= PACKED_HEADER {
        let size = u64::from_le_bytes(bytes[16..24].try_into().expect("8 bytes"));
        let index = size.div_ceil(BLOCK as u64).saturating_mul(4).saturating_add(PACKED_HEADER as u64);
        if let Some(index) = bytes.get(PACKED_HEADER..usize::try_from(index).unwrap_or(usize::MAX)) {
            let crc = crc32(&[index]);
            bytes[24..28].copy_from_slice(&crc.to_le_bytes());
        }
        let crc = crc32(&[&bytes[..PACKED_HEADER - 4]]);
        bytes[PACKED_HEADER - 4..PACKED_HEADER].copy_from_slice(&crc.to_le_bytes());
    }
    let open = || PackedSnapshot::from_file(file(&bytes));
    let Ok(mut packed) = open() else { return };
    let size = packed.size().expect("it is known");
    // What is read at once, and in parts, is the same; behind its end, there is nothing.
    let at = (place as u64).min(size);
    let len = (size - at).min(3 * BLOCK as u64) as usize;
    let (mut whole, mut parts) = (vec![1; len], vec![2; len]);
    let read = packed.fetch(at, &mut whole);
    let mut in_parts = Ok(());
    for (part, at) in parts.chunks_mut(1000 + place % 5000).zip((at..).step_by(1000 + place % 5000)) {
        in_parts = in_parts.and(packed.fetch(at, part));
    }
    assert_eq!(read.is_ok(), in_parts.is_ok());
    assert!(read.is_err() || whole == parts);
    assert!(packed.fetch(size, &mut [0]).is_err() && packed.fetch(u64::MAX, &mut [0; 2]).is_err());
    let (Ok(snapshot), Ok(again)) = (Snapshot::from_source(packed), open().map(Snapshot::from_source)) else {
        return;
    };
    assert!(again.is_ok(), "it is what it was");
    check(snapshot);
}

/// A peer that answers as its script says: it serves a snapshot, more or less.
struct Peer<'a> {
    script: Input<'a>,
    snapshot: Vec<u8>,
    asked: Vec<u8>,
    answer: VecDeque<u8>,
    state: Arc<Mutex<Asked>>,
}

/// What the client may be asked about.
#[derive(Default)]
struct Asked {
    questions: usize,
    /// A question after an answer that breaks the protocol.
    failed: bool,
}

impl Read for Peer<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // In pieces, as streams are.
        let most = 1 + usize::from(self.script.u8());
        let len = bytes.len().min(self.answer.len()).min(if most > 128 { usize::MAX } else { most });
        bytes.iter_mut().zip(self.answer.drain(..len)).for_each(|(to, byte)| *to = byte);
        Ok(len)
    }
}

impl Write for Peer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.asked.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let question: [u8; 12] = self.asked[..].try_into().expect("a question has 12 bytes");
        self.asked.clear();
        let mut state = self.state.lock().expect("nobody panics with it");
        state.questions += 1;
        assert!(!state.failed, "whoever breaks the protocol is not asked again");
        let offset = u64::from_le_bytes(question[..8].try_into().expect("8 bytes"));
        let len = u32::from_le_bytes(question[8..].try_into().expect("4 bytes")) as usize;
        assert!(len <= MAX_READ, "{len} bytes are asked for at once");
        let known = usize::try_from(offset).ok().and_then(|at| self.snapshot.get(at..at.checked_add(len)?));
        let mut data = known.map(<[u8]>::to_vec).unwrap_or_else(|| vec![0; len]);
        match self.script.u8() {
            // As it should be, in most cases.
            0..=0xbf => {}
            0xc0..=0xcf if !data.is_empty() => {
                let at = usize::from(self.script.u16()) % data.len();
                data[at] ^= 1 | self.script.u8();
            }
            0xd0..=0xdf => {
                self.answer.extend(1u32.to_le_bytes());
                return Ok(());
            }
            0xe0..=0xe7 => {
                self.answer.extend(2u32.to_le_bytes());
                state.failed = true;
                return Ok(());
            }
            0xe8..=0xef => {
                // Too short, and then nothing.
                data.truncate(usize::from(self.script.u16()) % data.len().max(1));
                state.failed = len > 0;
            }
            0xf0..=0xf7 => {
                self.answer.extend((3 | self.script.u32()).to_le_bytes());
                state.failed = true;
                return Ok(());
            }
            _ => {
                let len = usize::from(self.script.u8());
                data.extend(self.script.bytes(len));
            }
        }
        self.answer.extend(0u32.to_le_bytes());
        self.answer.extend(&data);
        Ok(())
    }
}

/// The first byte: 0x01 has the peer begin with what the input says, instead of a greeting as it should be; 0x02 has it say
/// another size. The rest is how it answers.
pub fn remote_client(bytes: &[u8]) {
    let mut script = Input::new(bytes);
    let form = script.u8();
    let mut answer = VecDeque::new();
    if form & 1 != 0 {
        let len = usize::from(script.u8());
        answer.extend(script.bytes(len));
    } else {
        let size = if form & 2 != 0 { script.number() } else { sample().len() as u64 };
        answer.extend(*b"OSSAPAGE\x01\0\0\0\0\0\0\0");
        answer.extend(size.to_le_bytes());
    }
    let state = Arc::new(Mutex::new(Asked::default()));
    let peer = |answer| Peer {
        script: script.clone(),
        snapshot: sample().to_vec(),
        asked: Vec::new(),
        answer,
        state: Arc::clone(&state),
    };
    let Ok(mut remote) = RemoteSnapshot::over(peer(answer)) else { return };
    let mut file = Vec::new();
    let size = remote.size().expect("it was said");
    for at in (0..size.min(1 << 20)).step_by(40_000) {
        let mut bytes = vec![0; (size.min(1 << 20) - at).min(40_000) as usize];
        if remote.fetch(at, &mut bytes).is_err() {
            state.lock().expect("nobody panics with it").failed = true;
        }
        file.extend(bytes);
    }
    let questions = state.lock().expect("nobody panics with it").questions;
    assert!(questions <= 27, "{questions} for at most 1 MiB");
    // What has come is a file from elsewhere.
    if let Ok(snapshot) = Snapshot::from_file(self::file(&file)) {
        check(snapshot);
    }
}

/// What a client says, and what it is told.
struct Client<'a> {
    says: &'a [u8],
    told: Vec<u8>,
}

impl Read for Client<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        // In pieces, as streams are.
        let len = bytes.len().min(7);
        self.says.read(&mut bytes[..len])
    }
}

impl Write for Client<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.told.extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// With a first byte that is odd, the rest is what the client says; otherwise it is questions: offset and length.
pub fn remote_server(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let mut says = Vec::new();
    if input.flag() {
        says = input.bytes(usize::MAX).to_vec();
    }
    while says.len() < 40 * 12 && !input.is_empty() {
        let (offset, len) = match input.u8() {
            near @ 0..=0x7f => (u64::from(near) * 1021, u32::from(input.u16())),
            _ => (input.number(), input.number() as u32),
        };
        says.extend(offset.to_le_bytes());
        says.extend(len.to_le_bytes());
    }
    let mut client = Client { says: &says, told: Vec::new() };
    let served = serve_snapshot(file(sample()), &mut client);
    // What a server says that keeps to the protocol.
    let mut expected = b"OSSAPAGE\x01\0\0\0\0\0\0\0".to_vec();
    expected.extend((sample().len() as u64).to_le_bytes());
    let mut is_good = true;
    for question in says.chunks_exact(12) {
        let offset = u64::from_le_bytes(question[..8].try_into().expect("8 bytes"));
        let len = u32::from_le_bytes(question[8..].try_into().expect("4 bytes")) as usize;
        let range = usize::try_from(offset).ok().and_then(|at| Some(at..at.checked_add(len)?));
        match range.and_then(|range| sample().get(range)) {
            _ if len > MAX_READ => is_good = false,
            None if len == 0 => expected.extend(1u32.to_le_bytes()),
            None => {
                expected.extend(2u32.to_le_bytes());
                is_good = false;
            }
            Some(bytes) if bytes.iter().all(|byte| *byte == 0) => expected.extend(1u32.to_le_bytes()),
            Some(bytes) => {
                expected.extend(0u32.to_le_bytes());
                expected.extend(bytes);
            }
        }
        if !is_good {
            break;
        }
    }
    assert!(client.told == expected, "{} bytes instead of {}", client.told.len(), expected.len());
    // Whoever hangs up before a question, or in its offset, may.
    assert_eq!(served.is_ok(), is_good && says.len() % 12 < 8, "{served:?}");
}

/// A snapshot with four pieces of memory, and a working set of it.
fn working_set_sample() -> &'static (Vec<u8>, Vec<u8>) {
    static SAMPLE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    SAMPLE.get_or_init(|| {
        let snapshot = content(&crate::snapshot::saved(8 << 20));
        let state = u64::from_le_bytes(snapshot[16..24].try_into().expect("8 bytes")) as usize;
        let (header, state) = snapshot[..44 + state].split_at(44);
        let number = u64::from(crc32(&[header])) << 32 | u64::from(crc32(&[state]));
        let mut set = b"OSSAWSET\x01\0\0\0\x03\0\0\0".to_vec();
        set.extend(number.to_le_bytes());
        set.extend([3u32, 0, 1].iter().flat_map(|chunk| chunk.to_le_bytes()));
        set.extend(crc32(&[&set]).to_le_bytes());
        (snapshot, set)
    })
}

/// The first byte: 0x01 keeps a wrong checksum, 0x02 takes the rest for the whole file; otherwise the rest are changes of a
/// good one.
pub fn working_set(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let form = input.u8();
    let (snapshot, sample) = working_set_sample();
    let mut bytes = if form & 2 != 0 { input.rest().to_vec() } else { sample[..sample.len() - 4].to_vec() };
    if form & 2 == 0 {
        patch(&mut input, &mut bytes);
    }
    if form & 1 == 0 {
        bytes.extend(crc32(&[&bytes]).to_le_bytes());
    }
    let set = file(&bytes);
    let Ok(set) = WorkingSet::open(path(&set)) else { return };
    assert_eq!(set.bytes(), (bytes.len() as u64 - 28) / 4 * (2 << 20));
    let folder = std::env::temp_dir().join(format!("working-set-fuzz-{}", std::process::id()));
    set.save(&folder).expect("what was read can be written");
    assert_eq!(fs::read(&folder).expect("it is there"), bytes, "as it was");
    fs::remove_file(&folder).expect("it is there");
    // As many as there are, each once.
    let snapshot = Snapshot::from_file(file(snapshot)).expect("a snapshot").on_demand();
    let taken = snapshot.prefetch(set.clone());
    assert!(taken.is_err() || set.bytes() <= 4 * (2 << 20));
}
