//! Sizes and times as people write them: `500G`, `64MiB`, `24h`, `1h 30m`, `90`.

use bytesize::ByteSize;
use std::str::FromStr;

/// Seconds. A bare number is so many seconds.
///
/// # Errors
/// For a person; below a second there is nothing.
pub(crate) fn seconds(text: &str) -> Result<u64, String> {
    let text = text.trim();
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let told = "give a time as 90, 90s, 15m, 24h, 30d or 1h 30m";
    let duration = humantime::parse_duration(text).map_err(|_| told.to_owned())?;
    match duration.subsec_nanos() {
        0 => Ok(duration.as_secs()),
        _ => Err(format!("whole seconds only: {told}")),
    }
}

/// Bytes. `k`, `M`, `G` and `T` are powers of 1000, `Ki` to `Ti` of 1024; a bare number is so many bytes.
///
/// # Errors
/// For a person.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let told = "give a size as 500G, 64MiB, 1.5T or a number of bytes";
    if text.starts_with('-') || text.starts_with('+') {
        return Err(told.to_owned());
    }
    ByteSize::from_str(text).map(|size| size.as_u64()).map_err(|_| told.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        let table = [
            ("90", 90),
            ("90s", 90),
            ("15m", 900),
            ("24h", 86_400),
            ("30d", 2_592_000),
            ("1h 30m", 5400),
            ("1h30m", 5400),
            ("1.5h", 5400),
            ("0", 0),
        ];
        for (text, expected) in table {
            assert_eq!(seconds(text), Ok(expected), "{text}");
        }
        for text in ["", "h", "-5", "-5m", "500ms", "5 parsecs", "99999999999999999999"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let table = [
            ("0", 0),
            ("1048576", 1 << 20),
            ("64MiB", 64 << 20),
            ("64Mi", 64 << 20),
            ("500G", 500_000_000_000),
            ("500GB", 500_000_000_000),
            ("500 gb", 500_000_000_000),
            ("1.5T", 1_500_000_000_000),
            ("10k", 10_000),
        ];
        for (text, expected) in table {
            assert_eq!(bytes(text), Ok(expected), "{text}");
        }
        for text in ["", "G", "-1G", "1X", "five"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
