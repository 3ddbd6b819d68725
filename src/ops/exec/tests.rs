use super::*;

#[test]
fn another_systems_programs_are_refused_by_name() {
    let host = Platform::host();
    assert!(can_run(&host).is_ok());
    assert!(can_run(&Platform { architecture: "s390x".to_owned(), ..host.clone() }).is_ok());
    let error = can_run(&Platform { os: "windows".to_owned(), ..host }).unwrap_err();
    assert!(matches!(&error, OpError::Unsupported { what } if what.contains("windows")), "{error}");
}

#[test]
fn a_process_of_another_machine_fails_with_what_it_may_lack() {
    let host = Platform::host();
    let other = Platform { architecture: "s390x".to_owned(), ..host.clone() };
    assert!(!is_foreign(&host, &[]));
    assert!(is_foreign(&other, std::slice::from_ref(&host)));
    assert!(!is_foreign(&other, &[host, other.clone()]), "it has an emulator");

    let source = ExecError::Exit { args: vec!["/bin/sh".to_owned()], code: 1, oom_killed: false };
    let error = ExecOpError::Process { source, mounts: Box::default(), foreign: Some(other) };
    assert!(error.to_string().contains("exit code: 1 (it is of platform linux/s390x: on "), "{error}");
}

#[test]
fn a_process_takes_root_and_says_so() {
    assert!(takes_root(true).is_ok());
    let error = takes_root(false).unwrap_err();
    assert!(error.to_string().contains("root"), "{error}");
}

#[test]
fn an_input_whose_bytes_are_gone_is_made_anew() {
    let digests = vec![crate::oci::Digest::sha256("x")];
    let gone = || CacheError::NeedsRemoteProvider { digests: digests.clone() };
    assert!(matches!(of_input(Some(2), gone()), OpError::InputGone { input: 2, .. }));
    assert!(matches!(of_input(None, gone()), OpError::Failed { .. }));
    assert!(of_input(Some(0), CacheError::Cancelled).is_cancelled());
}
