//! Random requests, over a chain that grows, against an array of bytes.

use proptest::prelude::*;

use super::*;

const SECTORS: u64 = 1024;

#[derive(Clone, Debug)]
enum Step {
    Write(u64, u64, u8),
    Read(u64, u64),
    Discard(u64, u64),
    Zero(u64, u64, bool),
    Flush,
    Reopen,
    /// What is there becomes the base of a new image.
    Snapshot,
    /// The process ends without a word, after a flush.
    Kill,
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    let range = (0..SECTORS).prop_flat_map(|at| (Just(at), 1..=(SECTORS - at).min(300)));
    prop_oneof![
        8 => (range.clone(), 1..=255_u8).prop_map(|((at, len), byte)| Step::Write(at, len, byte)),
        4 => range.clone().prop_map(|(at, len)| Step::Read(at, len)),
        3 => range.clone().prop_map(|(at, len)| Step::Discard(at, len)),
        3 => (range, any::<bool>()).prop_map(|((at, len), unmap)| Step::Zero(at, len, unmap)),
        2 => Just(Step::Flush),
        1 => Just(Step::Reopen),
        1 => Just(Step::Snapshot),
        1 => Just(Step::Kill),
        1 => Just(Step::Commit),
    ]
}

fn sectors(at: u64, len: u64) -> std::ops::Range<usize> {
    at as usize..(at + len) as usize
}

fn is_one_of(sector: &[u8], bytes: &[u8]) -> bool {
    bytes.iter().any(|byte| sector == [*byte; 512])
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_chain_is_an_array_of_bytes(
        steps in prop::collection::vec(step(), 1..60),
        cluster in prop::sample::select(vec![512_u32, 4096, 65536]),
    ) {
        let dir = dir();
        let options = read_write().with_backing_folder(dir.path());
        let mut paths = vec![dir.path().join("0")];
        NewQcow2::new(SECTORS * 512).with_cluster_size(cluster).create(&paths[0]).unwrap();
        let mut guest = Guest::open(&paths[0], &options);
        let mut model = vec![0_u8; SECTORS as usize];
        for step in steps {
            match step {
                Step::Write(at, len, byte) => {
                    guest.write(at * 512, &vec![byte; len as usize * 512]);
                    model[sectors(at, len)].fill(byte);
                }
                Step::Read(at, len) => {
                    let data = guest.read(at * 512, len as usize * 512);
                    for (sector, want) in data.chunks(512).zip(&model[sectors(at, len)]) {
                        prop_assert!(is_one_of(sector, &[*want]));
                    }
                }
                Step::Discard(at, len) => {
                    guest.disk.discard(at * 512, len * 512).unwrap();
                    // Zeros, or what was there; and that it stays.
                    let data = guest.read(at * 512, len as usize * 512);
                    for (sector, want) in data.chunks(512).zip(&mut model[sectors(at, len)]) {
                        prop_assert!(is_one_of(sector, &[0, *want]));
                        *want = sector[0];
                    }
                }
                Step::Zero(at, len, unmap) => {
                    guest.disk.write_zeroes(at * 512, len * 512, unmap).unwrap();
                    model[sectors(at, len)].fill(0);
                }
                Step::Flush => guest.disk.flush().unwrap(),
                Step::Reopen => {
                    drop(guest);
                    guest = Guest::open(paths.last().unwrap(), &options);
                }
                Step::Snapshot => {
                    drop(guest);
                    let path = dir.path().join(paths.len().to_string());
                    let base = paths.last().unwrap();
                    let new = NewQcow2::over_with(base, ImageFormat::Qcow2, &options).unwrap();
                    new.with_cluster_size(cluster).create(&path).unwrap();
                    paths.push(path);
                    guest = Guest::open(paths.last().unwrap(), &options);
                }
                Step::Kill => {
                    guest.disk.flush().unwrap();
                    let path = paths.last().unwrap();
                    let saved = fs::read(path).unwrap();
                    drop(guest);
                    fs::write(path, saved).unwrap();
                    guest = Guest::open(path, &options);
                }
                Step::Commit => {
                    drop(guest);
                    if paths.len() > 1 {
                        Qcow2::commit(paths.last().unwrap(), &options).unwrap();
                    }
                    guest = Guest::open(paths.last().unwrap(), &options);
                }
            }
        }
        let all = guest.all();
        drop(guest);
        for (sector, want) in all.chunks(512).zip(&model) {
            prop_assert!(is_one_of(sector, &[*want]));
        }
        for path in &paths {
            check(path);
        }
        prop_assert!(contents(paths.last().unwrap()) == all);
    }
}
