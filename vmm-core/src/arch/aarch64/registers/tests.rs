use super::*;

/// An id as the kernel documents it: x0 is 0x6030_0000_0010_0000, and each next one two more.
const X0: u64 = 0x6030_0000_0010_0000;
const SP_EL1: u64 = X0 + 0x44;
const PC: u64 = X0 + 0x40;
const PSTATE: u64 = X0 + 0x42;

#[test]
fn each_register_has_the_id_that_the_kernel_documents() {
    let mut registers = Registers::default();
    let ids: Vec<u64> = places(&mut registers).map(|(id, _)| id).collect();
    let expected: Vec<u64> = (0..31).map(|n| X0 + 2 * n).chain([SP_EL1, PC, PSTATE]).collect();
    assert_eq!(ids, expected);
}

#[test]
fn a_new_vcpu_is_told_what_differs_from_its_reset_only() {
    let mut registers = KvmRegisters::new(0).unwrap();
    assert_eq!(registers.changes(), []);
    let mut start = Registers::el1(0x4008_0000);
    start.x[0] = 0x4800_0000;
    registers.apply(&start);
    assert_eq!(registers.changes(), [(X0, 0x4800_0000), (PC, 0x4008_0000)]);
    assert_eq!(Registers::from(registers), start);
}

#[test]
fn registers_survive_the_way_through_bytes_and_read_as_a_table() {
    let mut registers = Registers::el1(0x1234);
    registers.x.iter_mut().zip(1..).for_each(|(x, n)| *x = n);
    registers.sp = 0x8000;
    let mut fields = Encoder::new("test", 1);
    registers.encode(&mut fields);
    let saved = fields.finish();
    let mut fields = Decoder::new(&saved, "test", 1..=1).unwrap();
    assert_eq!(Registers::decode(&mut fields), Ok(registers));
    let text = registers.to_string();
    assert_eq!(text.lines().count(), 9, "{text}");
    assert!(text.ends_with("sp  0000000000008000\npc  0000000000001234  pstate 000003c5"), "{text}");
}
