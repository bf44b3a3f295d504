//! A block device of the host outlives an agent that is away for a minute.

use crate::ublk::outlives_its_agent;

#[test]
#[ignore = "suite: ublk"]
fn a_device_of_the_hosts_own_kernel_waits_for_a_minute() {
    outlives_its_agent(&["100", "300", "900", "1500", "5000", "60000"]);
}
