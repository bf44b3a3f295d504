//! Names that people give: of VMs, groups and disks. They become parts of file names and of sockets, on
//! both sides, so both sides check them.

use crate::limits::NAME_BYTES_MAX;

/// Whether a name is 1 to 64 letters, digits, `-`, `_` and `.`, and does not begin with a dot.
pub fn is_plain_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(allowed) && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leads_out_of_its_folder() {
        assert!(is_plain_name("web-1.example"));
        for name in ["", ".", "..", "../x", "a/b", "/etc", "a b", "a\0b", ".hidden", &"x".repeat(65)] {
            assert!(!is_plain_name(name), "{name:?}");
        }
    }
}
