use super::*;

#[test]
fn another_machines_programs_are_refused_by_name() {
    let host = Platform::host();
    assert!(can_run(&host, &[]).is_ok());
    let other = Platform { architecture: "s390x".to_owned(), ..host.clone() };
    let error = can_run(&other, std::slice::from_ref(&host)).unwrap_err();
    assert!(matches!(&error, OpError::Unsupported { what } if what.contains("s390x")), "{error}");
    assert!(can_run(&other, &[host.clone(), other.clone()]).is_ok(), "it has an emulator");
    assert!(can_run(&Platform { os: "windows".to_owned(), ..host }, &[]).is_err());
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
