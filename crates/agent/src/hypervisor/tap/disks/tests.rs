use super::*;

fn disk(device: Option<&str>, image: &str, node: &str) -> FoundDisk {
    FoundDisk {
        node: node.into(),
        drive: node.into(),
        format: "raw".into(),
        facts: DiskFacts {
            device: device.map(str::to_owned),
            serial: None,
            image: image.into(),
            inode: Some(image.len() as u64),
            size_bytes: 1 << 20,
        },
        has_log: false,
    }
}

fn refusal(known: &DiskFacts, found: &[FoundDisk]) -> String {
    recognise(known, found).unwrap_err().to_string()
}

#[test]
fn a_disk_is_known_by_its_device_and_image_whatever_its_node_is_called() {
    let before = disk(Some("virtio-disk0"), "/web.raw", "libvirt-1-format");
    let second = disk(Some("virtio-disk1"), "/second.raw", "libvirt-1-format");
    let moved = disk(Some("virtio-disk0"), "/web.raw", "libvirt-2-format");
    assert_eq!(recognise(&before.facts, &[second.clone(), moved.clone()]), Ok(&moved));
    assert_eq!(recognise(&before.facts, &[second]), Err(NotThere::Gone));
}

#[test]
fn any_difference_is_another_disk() {
    let known = disk(Some("virtio-disk0"), "/web.raw", "n").facts;
    let other_image = disk(Some("virtio-disk0"), "/other.raw", "n");
    assert!(refusal(&known, &[other_image]).contains("has image /other.raw now"));
    let other_device = disk(Some("virtio-disk7"), "/web.raw", "n");
    assert!(refusal(&known, &[other_device]).contains("is at device virtio-disk7 now"));
    let mut same = disk(Some("virtio-disk0"), "/web.raw", "n");
    same.facts.inode = Some(1);
    assert!(refusal(&known, &[same.clone()]).contains("was replaced by another file"));
    same.facts.inode = None;
    assert_eq!(recognise(&known, &[same.clone()]), Ok(&same), "what cannot be looked at is no difference");
    same.facts.serial = Some("D1".into());
    assert!(refusal(&known, &[same.clone()]).contains("has serial D1 now; it had no serial"));
    same.facts.size_bytes += 512;
    assert!(refusal(&known, &[same]).contains("bytes now; it had"));
}

#[test]
fn a_device_without_an_id_is_known_by_its_image() {
    let known = disk(None, "/web.raw", "#block123").facts;
    let now = disk(None, "/web.raw", "#block999");
    assert_eq!(recognise(&known, &[disk(None, "/second.raw", "#block123"), now.clone()]), Ok(&now));
    assert!(refusal(&known, &[now.clone(), now]).contains("two devices"));
}

#[test]
fn what_an_older_version_wrote_down_is_believed_where_only_one_disk_can_be_meant() {
    let first = disk(Some("virtio-disk0"), "/web.raw", "libvirt-1-format");
    let second = disk(Some("virtio-disk1"), "/second.raw", "libvirt-2-format");
    let mut logged = first.clone();
    logged.has_log = true;
    let alone = |found: &[FoundDisk]| recognise_by_name("libvirt-1-format", found).is_ok();
    assert!(alone(std::slice::from_ref(&first)));
    assert!(alone(&[logged, second.clone()]));
    assert!(!alone(&[first, second.clone()]));
    assert!(!alone(&[second]));
    let given = [disk(None, "/a", "virtio0"), disk(None, "/b", "virtio1")];
    assert!(recognise_by_name("virtio1", &given).is_ok());
}

#[test]
fn only_ids_that_were_given_are_ids() {
    assert_eq!(device_id("/machine/peripheral/v0/virtio-backend").as_deref(), Some("v0"));
    assert_eq!(device_id("scsi0-0-0").as_deref(), Some("scsi0-0-0"));
    assert_eq!(device_id("/machine/peripheral-anon/device[1]/virtio-backend"), None);
}
