use super::*;
use crate::arch::REQUIRED;

#[test]
fn each_missing_capability_is_named() {
    for (name, cap) in REQUIRED {
        let error = check(|c| c != cap).unwrap_err();
        assert!(matches!(&error, VmError::MissingCapabilities { missing } if *missing == [name]));
        assert!(error.to_string().contains(&name.to_string()), "{error}");
    }
}

#[test]
fn all_missing_capabilities_are_named_at_once() {
    let error = check(|_| false).unwrap_err().to_string();
    for (name, _) in REQUIRED {
        assert!(error.contains(&name.to_string()), "{error}");
    }
}

#[test]
fn a_host_with_everything_passes() {
    assert!(check(|_| true).is_ok());
}

#[test]
fn without_a_device_the_error_says_what_to_look_for() {
    let error = Kvm::open_at(Path::new("/nonexistent/kvm")).unwrap_err();
    assert!(matches!(error, VmError::NoKvm { .. }));
    assert!(error.to_string().starts_with("/nonexistent/kvm: not found"), "{error}");
}

#[test]
fn without_permission_the_error_names_the_group() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let gid = fs::metadata(file.path()).unwrap().gid();
    let groups = format!("other:x:{}:\nvirt:x:{gid}:me\n", gid + 1);
    assert_eq!(owning_group(file.path(), &groups), "virt");
    assert_eq!(owning_group(file.path(), "broken line\n"), gid.to_string());
    let error = open_error(file.path(), io::Error::from_raw_os_error(libc::EACCES));
    assert!(matches!(error, VmError::Permission { .. }));
    assert!(error.to_string().contains("usermod -aG"), "{error}");
}

#[test]
fn a_file_that_is_not_kvm_is_refused() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(matches!(Kvm::open_at(file.path()), Err(VmError::ApiVersion { found: -1 })));
}

#[test]
fn an_open_descriptor_is_checked_as_a_path_is() {
    let file = tempfile::tempfile().unwrap();
    assert!(matches!(Kvm::from_fd(file.into()), Err(VmError::ApiVersion { found: -1 })));
}
