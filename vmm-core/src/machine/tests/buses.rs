//! Devices that bring buses into their machine, and devices on these.

use ossature_bus::ParentBus;

use super::*;

fn bus() -> ParentBus {
    ParentBus::new("a bus that is not here: add it")
}

fn host(bus: &ParentBus) -> Asks {
    Asks("host", Requires::new().brings(bus))
}

fn on(id: &'static str, bus: &ParentBus) -> Asks {
    Asks(id, Requires::new().on(bus))
}

fn builder() -> MachineBuilder {
    Machine::builder("test").memory(RamConfig::new(1 << 20))
}

fn build(builder: MachineBuilder) -> Result<Machine, BuildErrors> {
    builder.build(&Scripted::new([Script::new()]))
}

/// What is said of a device without its bus.
const ALONE: &str = "device \"one\" is on a bus that is not here: add it";

fn is_alone(built: Result<Machine, BuildErrors>) {
    let errors = built.unwrap_err();
    assert!(matches!(errors.errors(), [BuildError::NoBus { .. }]), "{errors}");
    assert_eq!(errors.to_string(), ALONE);
}

#[test]
fn a_device_is_in_the_machine_of_its_bus_wherever_in_the_list_that_comes() {
    let bus = bus();
    build(builder().device(host(&bus)).device(on("one", &bus))).unwrap();
    build(builder().device(on("one", &bus)).device(host(&bus))).unwrap();
    is_alone(build(builder().device(on("one", &bus))));
    // Another one is another one, whatever is said of it.
    is_alone(build(builder().device(host(&self::bus())).device(on("one", &bus))));
}

#[test]
fn all_devices_without_their_bus_are_told() {
    let (bus, other) = (bus(), bus());
    let members = builder().device(on("one", &bus)).device(on("two", &other)).device(on("three", &bus));
    let told = build(members.device(host(&other))).unwrap_err().to_string();
    assert_eq!(told, format!("{ALONE}; {}", ALONE.replace("one", "three")));
}

#[test]
fn a_device_that_comes_later_finds_its_bus_or_is_refused() {
    let (here, there) = (bus(), bus());
    let machine = build(builder().device(host(&here))).unwrap();
    let _other = build(builder().device(host(&there))).unwrap();
    machine.add_device(on("mine", &here)).unwrap();
    assert_eq!(machine.add_device(on("one", &there)).unwrap_err().to_string(), ALONE);
    // One on another bus is no replacement.
    let error = machine.replace_device(on("mine", &there)).err().unwrap();
    assert!(matches!(error, LifecycleError::DifferentDevice { .. }), "{error}");
    machine.replace_device(on("mine", &here)).unwrap();
    machine.remove_device("host").unwrap();
    assert_eq!(machine.add_device(on("one", &here)).unwrap_err().to_string(), ALONE);
}

#[test]
fn each_clone_has_a_bus_of_its_own_and_no_other() {
    let whole = |builder: MachineBuilder, bus: &ParentBus| builder.device(host(bus)).device(on("one", bus));
    let template = build(whole(builder(), &bus())).unwrap().template().unwrap();
    for _ in 0..3 {
        build(whole(template.any_child(), &bus())).unwrap();
        // The devices that are asked for are the same, and fit.
        is_alone(build(template.any_child().device(host(&bus())).device(on("one", &bus()))));
    }
    is_alone(build(template_of_one().device(host(&bus())).device(on("one", &bus()))));
}

/// The first child of a template: nothing is known yet of what fits.
fn template_of_one() -> MachineBuilder {
    let bus = bus();
    let parent = build(builder().device(host(&bus)).device(on("one", &bus))).unwrap();
    parent.template().unwrap().any_child()
}
