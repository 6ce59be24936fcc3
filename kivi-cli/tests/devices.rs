//! `devices`, and devices that are not there.

mod common;

use common::kivi;
use serde_json::Value;

#[test]
fn a_device_that_is_not_there_is_one_line() {
    for device in ["cuda", "cuda:3"] {
        let ran = kivi(&["generate", "-p", "a", "-n", "1", "--device", device]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        assert!(ran.stderr.starts_with("error: --device cuda:") && ran.stderr.contains("no CUDA device"));
        assert_eq!(ran.stderr.lines().count(), 1, "{}", ran.stderr);
    }
}

#[test]
fn devices_says_what_there_is_and_why_no_more() {
    let ran = kivi(&["devices"]);
    assert!(ran.code == 0 && ran.stdout.starts_with("cpu "), "{}", ran.stdout);
    assert!(ran.stdout.contains("cuda     not usable: no CUDA device: "), "{}", ran.stdout);
    let found: Value = serde_json::from_str(&kivi(&["devices", "--json"]).stdout).unwrap();
    assert_eq!((&found[0]["device"], &found[0]["usable"]), (&"cpu".into(), &true.into()));
    assert!(found[1]["why"].is_string());
}
