//! How much memory the program has taken.

/// The most memory that this process had at a time, in bytes, where the system says.
#[cfg(target_os = "linux")]
pub fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

/// The most memory that this process had at a time, in bytes, where the system says.
#[cfg(not(target_os = "linux"))]
pub fn peak_bytes() -> Option<u64> {
    None
}
