//! What a person reads, and its JSON twin.

use anyhow::{Context, Result};
use api::{
    Alert, AuditOutcome, AuditPage, Change, CheckpointPage, ClosedImage, Failover, Group, HistoryLock, Image,
    Journal, LiftAsked, Operation, OperationPage, Pin, Promotion, ProtectedVm, RecoveredVm, Status, Verify,
};
use serde::Serialize;
use serde_json::Value;
use std::fmt::Write as _;
use std::io::Write as _;

/// Prints one JSON document.
pub(crate) fn json(value: &Value) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("write JSON")?;
    out(&format!("{text}\n"))
}

/// Prints text. A reader that has had enough, as `head`, is no fault.
fn out(text: &str) -> Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        printed => printed.context("print"),
    }
}

/// Prints `value` as JSON, or as `text` tells it.
pub(crate) fn one<T: Serialize>(as_json: bool, value: &T, text: impl FnOnce(&T) -> String) -> Result<()> {
    if as_json {
        return json(&serde_json::to_value(value).context("write JSON")?);
    }
    out(&text(value))
}

pub(crate) fn status(status: &Status) -> String {
    let mut out = format!("agent {} of site {}, version {}\n", status.agent, status.site, status.version);
    for alert in &status.alerts {
        let _ = writeln!(out, "ALERT: {alert}");
    }
    if !status.protected.is_empty() {
        out += "\nPROTECTED\n";
        out += &vm_table(&status.protected);
    }
    if !status.recovered.is_empty() {
        out += "\nJOURNALS\n";
        out += &recovered_table(&status.recovered);
    }
    if !status.images.is_empty() {
        out += "\nIMAGES\n";
        out += &image_table(&status.images);
    }
    out
}

pub(crate) fn alerts(alerts: &[Alert]) -> String {
    if alerts.is_empty() {
        return "nothing is known to be wrong\n".into();
    }
    let mut out = String::new();
    for alert in alerts {
        let (severity, kind) = (alert.severity.to_uppercase(), &alert.kind);
        let _ = writeln!(out, "{severity} {kind}: {}", alert.text);
        let _ = writeln!(out, "  since {} ({}); {}", alert.since, seconds(alert.age_seconds), alert.to_do);
    }
    out
}

pub(crate) fn vm_table(vms: &[ProtectedVm]) -> String {
    if vms.is_empty() {
        return "no VM is protected here\n".into();
    }
    let mut rows = vec![
        [
            "VM", "GROUP", "STATE", "LINK", "RPO NOW", "BUFFER", "TO SYNC", "JOURNAL", "HISTORY", "WRITING",
            "SENDING",
        ]
        .map(str::to_owned),
    ];
    for vm in vms {
        let mut state = vm.state.clone();
        if let Some(progress) = vm.sync_progress {
            let _ = write!(state, " {:.0} %", progress * 100.0);
        }
        let rpo = vm.rpo_now_seconds.map_or("unknown".into(), |age| format!("{age:.1} s"));
        rows.push([
            vm.name.clone(),
            vm.group.clone(),
            state,
            vm.link.clone(),
            if vm.rpo_exceeded { format!("{rpo} !") } else { rpo },
            bytes(vm.buffer_bytes),
            vm.to_sync_bytes.map_or("unknown".into(), bytes),
            bytes(vm.journal_bytes),
            seconds(vm.history_seconds),
            format!("{}/s", bytes(vm.write_bytes_per_second as u64)),
            format!("{}/s", bytes(vm.sent_bytes_per_second as u64)),
        ]);
    }
    let mut out = table(&rows);
    for vm in vms {
        if let Some(error) = &vm.last_error {
            let _ = writeln!(out, "{}: {error}", vm.name);
        }
    }
    out
}

fn recovered_table(vms: &[RecoveredVm]) -> String {
    let mut rows = vec![
        ["VM", "SITE", "GROUP", "STATE", "STREAM", "JOURNAL", "HISTORY", "CHECKPOINTS", "NEWEST WHOLE"]
            .map(str::to_owned),
    ];
    for vm in vms {
        let stream = match (vm.connected, vm.syncing) {
            (true, true) => "syncing",
            (true, false) => "connected",
            (false, _) if vm.left_at.is_some() => "ended",
            (false, _) => "none",
        };
        rows.push([
            vm.name.clone(),
            vm.site.clone(),
            vm.group.clone(),
            vm.state.clone(),
            stream.into(),
            bytes(vm.journal_bytes),
            match vm.projected_history_seconds {
                Some(projected) => format!("{} → {}", seconds(vm.history_seconds), seconds(projected)),
                None => seconds(vm.history_seconds),
            },
            vm.checkpoints.to_string(),
            vm.newest_checkpoint.as_ref().map_or("-".into(), |checkpoint| checkpoint.taken_at.clone()),
        ]);
    }
    let mut out = table(&rows);
    for vm in vms {
        if vm.damaged_bytes > 0 {
            let lost = bytes(vm.damaged_bytes);
            let _ = writeln!(
                out,
                "{}: {lost} of its newest state are damaged: newer checkpoints are not whole",
                vm.name
            );
        }
        if let Some(until) = &vm.locked_until {
            let _ = writeln!(out, "{}: its history is locked until {until}", vm.name);
        }
        if let Some(error) = &vm.last_error {
            let _ = writeln!(out, "{}: {error}", vm.name);
        }
    }
    out
}

pub(crate) fn protected(vm: &ProtectedVm) -> String {
    let agent = vm.peer_agent.as_ref().map_or_else(String::new, |agent| format!(" ({agent})"));
    let mut out = format!("{} of group {}, protected to {}{agent}\n", vm.name, vm.group, vm.peer);
    let why = if vm.reason.is_empty() { String::new() } else { format!(" ({})", vm.reason) };
    let _ = writeln!(out, "  state    {}{why}, link {}", vm.state, vm.link);
    if vm.sync_progress.is_some() {
        let _ = writeln!(out, "  sync     {}", sync_line(vm));
    }
    if let Some(error) = &vm.last_error {
        let _ = writeln!(out, "  trouble  {error}");
    }
    let rpo =
        vm.rpo_now_seconds.map_or("unknown: nothing was ever complete".into(), |age| format!("{age:.1} s"));
    let _ = writeln!(out, "  RPO now  {rpo}, bound {} s", vm.rpo_seconds);
    if let Some(unreadable) = vm.unreadable_bytes.filter(|&bytes| bytes > 0) {
        let _ = writeln!(
            out,
            "  disks    {} cannot be read here as a whole: no checkpoint has all of it",
            bytes(unreadable)
        );
    }
    if vm.asked_again_bytes > 0 {
        let again = bytes(vm.asked_again_bytes);
        let _ =
            writeln!(out, "  again    {again} were lost to damage at the other side, and asked for again");
    }
    let _ = writeln!(out, "  mode     {}, priority {}", vm.mode, vm.priority);
    let _ = writeln!(out, "  fenced   {}, once its group has failed over", vm.on_fenced);
    let _ = writeln!(out, "  buffer   {} of {}", bytes(vm.buffer_bytes), bytes(vm.buffer_bytes_max));
    let _ = writeln!(out, "  spill    {} of {}", bytes(vm.spill_bytes), bytes(vm.spill_bytes_max));
    if let Some(skew) = vm.clock_skew_seconds {
        let _ = writeln!(out, "  clocks   the peer's is {skew:+.3} s off ours");
    }
    let _ = writeln!(out, "  journal  {}, history {}", bytes(vm.journal_bytes), seconds(vm.history_seconds));
    for disk in &vm.disks {
        let _ = writeln!(out, "  disk     {} {} {}", disk.name, bytes(disk.size_bytes), disk.path);
        if let Some(socket) = &disk.vhost_user_socket {
            let _ = writeln!(out, "           {socket} (vhost-user-blk)");
        }
        if let Some(device) = &disk.ublk_device {
            let _ = writeln!(out, "           {device} (block device of this host)");
        }
    }
    match &vm.qmp {
        Some(qmp) => {
            let _ = writeln!(out, "  tapped   runs on its own image; its QMP socket is {qmp}");
            if let Some(guest) = &vm.guest {
                let _ = writeln!(out, "  guest    {guest}");
            }
        }
        None => {
            let _ = writeln!(out, "  socket   {} (NBD; each disk is an export by its name)", vm.socket);
        }
    }
    for note in &vm.notes {
        let _ = writeln!(out, "  note     {note}");
    }
    out
}

/// What a change is, and what it costs.
pub(crate) fn change(change: &Change) -> String {
    let mut out = String::new();
    for vm in &change.vms {
        if vm.settings.is_empty() {
            let _ = writeln!(out, "{}: nothing changes", vm.vm);
            continue;
        }
        let how = if change.is_done { "changed" } else { "would be changed" };
        let _ = writeln!(out, "{} {how}:", vm.vm);
        for setting in &vm.settings {
            let _ =
                writeln!(out, "  {}: {} -> {}", setting.name, value(&setting.before), value(&setting.after));
        }
        vm.costs.iter().for_each(|cost| {
            let _ = writeln!(out, "  {cost}");
        });
    }
    change.notes.iter().for_each(|note| {
        let _ = writeln!(out, "{note}");
    });
    out
}

fn value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".into(),
        other => other.to_string(),
    }
}

/// A bar that is filled by a share of its length.
pub(crate) fn bar(share: f64) -> String {
    let bar: String = (0..30).map(|at| if f64::from(at) < share * 30.0 { '#' } else { '.' }).collect();
    format!("[{bar}]")
}

/// How far a sync is, in one line.
pub(crate) fn sync_line(vm: &ProtectedVm) -> String {
    let Some(progress) = vm.sync_progress else {
        return format!("{}, link {}", vm.state, vm.link);
    };
    let left = vm.to_sync_bytes.map_or("unknown".into(), bytes);
    format!("{} {:.0} %, {left} left", bar(progress), progress * 100.0)
}

pub(crate) fn verify(name: &str, verify: &Verify) -> String {
    let mut out =
        format!("{name}: {} of {} compared", bytes(verify.compared_bytes), bytes(verify.total_bytes));
    out += match (verify.state.as_str(), verify.differing_bytes) {
        ("done", 0) if verify.unreadable_bytes > 0 => ", what could be read is equal\n",
        ("done", 0) => ", both sides are equal\n",
        ("done", _) if verify.repaired => ", these differed and were sent again:\n",
        ("done", _) => ", these differ and are being sent again:\n",
        (_, _) => ", still running\n",
    };
    for extent in &verify.differing {
        let _ = writeln!(out, "  disk {} at {}: {}", extent.disk, extent.start, bytes(extent.bytes));
    }
    if verify.unreadable_bytes > 0 {
        let _ = writeln!(
            out,
            "  {} could not be read here: it was not compared, and the recovery side has of it what it had before",
            bytes(verify.unreadable_bytes)
        );
    }
    out
}

pub(crate) fn checkpoints(page: &CheckpointPage) -> String {
    let mut rows = vec![
        ["CHECKPOINT", "TAKEN", "KIND", "WRITES", "WRITTEN", "ENTROPY", "DAMAGED", "TAG"].map(str::to_owned),
    ];
    for checkpoint in &page.checkpoints {
        rows.push([
            checkpoint.id.clone(),
            checkpoint.taken_at.clone(),
            checkpoint.kind.clone(),
            checkpoint.writes.to_string(),
            bytes(checkpoint.write_bytes),
            checkpoint.entropy_bits.map_or("-".into(), |bits| format!("{bits:.2}")),
            if checkpoint.damaged_bytes > 0 { bytes(checkpoint.damaged_bytes) } else { "-".into() },
            checkpoint.tag.clone(),
        ]);
    }
    let mut out = table(&rows);
    if let Some(next) = &page.next {
        let _ = writeln!(out, "more: --cursor {next}");
    }
    for unread in &page.unread {
        let _ = writeln!(out, "CANNOT BE READ: {unread}");
    }
    out
}

pub(crate) fn audit(page: &AuditPage) -> String {
    let mut rows =
        vec![["ID", "ASKED", "WHO", "FROM", "ROLE", "WHAT", "OUTCOME", "OPERATION"].map(str::to_owned)];
    for entry in &page.entries {
        let outcome = match entry.outcome {
            AuditOutcome::Done => "done",
            AuditOutcome::Refused => "refused",
            AuditOutcome::Failed => "failed",
            AuditOutcome::Left => "left",
            AuditOutcome::Unknown => "unknown",
        };
        rows.push([
            entry.id.clone(),
            entry.at.clone(),
            entry.who.clone(),
            entry.from.clone(),
            entry.role.clone().unwrap_or_else(|| "-".into()),
            format!("{} {}", entry.method, entry.path),
            entry.status.map_or_else(|| outcome.to_owned(), |status| format!("{outcome} ({status})")),
            entry.operation.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    let mut out = table(&rows);
    if let Some(next) = &page.next {
        let _ = writeln!(out, "more: --cursor {next}");
    }
    out
}

pub(crate) fn image(image: &Image) -> String {
    let how = if image.writable { "writable" } else { "read-only" };
    let mut out = format!("image {} of {} as of {}, {how}\n", image.id, image.vm, image.cut);
    match (&image.checkpoint, &image.taken_at) {
        (Some(checkpoint), _) => {
            let _ = writeln!(out, "  checkpoint  {} {}", checkpoint.taken_at, checkpoint.tag);
        }
        (None, Some(at)) => {
            let _ = writeln!(out, "  as of       {at} or somewhat later");
        }
        (None, None) => {}
    }
    for note in &image.notes {
        let _ = writeln!(out, "  NOTE        {note}");
    }
    for disk in &image.disks {
        let _ = writeln!(out, "  disk        nbd+unix:///{}?socket={}", disk.name, image.socket);
        if let Some(socket) = &disk.vhost_user_socket {
            let _ = writeln!(out, "              {socket} (vhost-user-blk)");
        }
    }
    if image.promotion.state != "none" {
        let _ = writeln!(out, "  promotion   {}", promotion_line(&image.promotion));
    }
    for disk in image.disks.iter().filter(|disk| !disk.path.is_empty()) {
        let _ = writeln!(out, "  plain disk  {}", disk.path);
    }
    if image.zeroed_bytes > 0 {
        let _ = writeln!(out, "  zeroed      {} were lost and are zeroes:", bytes(image.zeroed_bytes));
        for api::DiskRange { disk, start, len } in &image.zeroed {
            let _ = writeln!(out, "              disk {disk} at byte {start}, {len} bytes");
        }
    }
    if let Some(error) = &image.error {
        let _ = writeln!(out, "  error       {error}");
    }
    let keeps = if image.promotion.state == "done" { " (its plain disks stay)" } else { "" };
    let _ = writeln!(out, "  close with  holdfast image close {}{keeps}", image.id);
    out
}

/// An image that is closed, with what stays of it.
pub(crate) fn closed_image(id: &str, closed: &ClosedImage) -> String {
    let mut out = format!("image {id} is closed\n");
    for path in &closed.kept {
        let _ = writeln!(out, "  plain disk  {path} stays: it is yours to use or to remove");
    }
    if let Some(lost) = &closed.lost {
        let _ = writeln!(
            out,
            "  warning     what was written since the last flush may be lost: {lost}; check the file systems on them"
        );
    }
    out
}

/// How far a promotion is, in one line.
pub(crate) fn promotion_line(promotion: &Promotion) -> String {
    let share = promotion.own_bytes as f64 / promotion.total_bytes.max(1) as f64;
    let (own, total) = (bytes(promotion.own_bytes), bytes(promotion.total_bytes));
    let error = promotion.error.as_ref().map_or(String::new(), |error| format!(": {error}"));
    format!("{} {}, {own} of {total}{error}", bar(share), promotion.state)
}

pub(crate) fn journal(journal: &Journal) -> String {
    let mut out = format!("journal of {}, {}, in {}\n", journal.vm, journal.mode, journal.folder);
    let limit = |limit: u64| if limit == 0 { "none".to_owned() } else { bytes(limit) };
    let _ = writeln!(
        out,
        "  size         {} in {} segments, soft limit {}, hard limit {}",
        bytes(journal.journal_bytes),
        journal.segments,
        limit(journal.bytes_soft),
        limit(journal.bytes_hard)
    );
    let projected = journal
        .projected_history_seconds
        .map_or(String::new(), |projected| format!("; the limit will leave {}", seconds(projected)));
    let _ = writeln!(
        out,
        "  history      {} of {}{projected}",
        seconds(journal.history_seconds),
        seconds(journal.history_seconds_max)
    );
    if let Some(lock) = &journal.lock {
        let _ = writeln!(out, "  locked       {}", lock_line(lock));
    }
    if let Some(asked) = &journal.asked {
        let (history, most) = (seconds(asked.history_seconds), limit(asked.bytes_max));
        let _ =
            writeln!(out, "  asked        less by its site: {history}, hard limit {most}; not taken over");
    }
    let _ = writeln!(
        out,
        "  checkpoints  {}; all up to {}, one a minute up to {}, then one in 15 minutes; tags hold {}",
        journal.checkpoints,
        seconds(journal.keep_all_seconds),
        seconds(journal.keep_minutely_seconds),
        seconds(journal.keep_tagged_seconds)
    );
    let _ = writeln!(out, "  index        {} entries in {} runs", journal.index_entries, journal.index_runs);
    let _ = writeln!(out, "  replica      at {}, in {}", journal.applied_seq, journal.replica_folder);
    if !journal.direct_io {
        out += "  note         its file system has no direct I/O: the page cache is used\n";
    }
    let scrubbed = journal.scrubbed_at.as_deref().unwrap_or("never yet");
    let _ = writeln!(out, "  scrubbed     {scrubbed}");
    for pin in &journal.pins {
        let expires = pin.expires_at.as_ref().map_or(String::new(), |at| format!(", expires {at}"));
        let _ = writeln!(out, "  pin {:<8} {} by {}{expires}", pin.id, pin.cut, pin.owner);
    }
    for damage in &journal.damage {
        let _ = writeln!(out, "  DAMAGED      {damage}");
    }
    if journal.damaged_bytes > 0 {
        let _ = writeln!(out, "  DAMAGED      {} of its newest state", bytes(journal.damaged_bytes));
    }
    out
}

/// Until when a history is locked, in words.
fn lock_line(lock: &HistoryLock) -> String {
    let left = match lock.seconds_left_min {
        0 => String::new(),
        left => format!(" and for {} at the least", seconds(left)),
    };
    let mut line = format!("until {}{left}, by {}", lock.until, lock.set_by);
    if let Some(LiftAsked { id, by, seconds_left, .. }) = &lock.lift {
        let left = seconds(*seconds_left);
        let _ = write!(
            line,
            "; {by} asks that it be lifted: another person does that with `--confirm {id}` within {left}"
        );
    }
    line
}

pub(crate) fn locked(journals: &[Journal]) -> String {
    let of = |journal: &Journal| {
        let lock = journal.lock.as_ref().map(lock_line);
        let lock = lock.map_or("not locked".to_owned(), |lock| format!("locked {lock}"));
        format!("the history of {} is {lock}\n", journal.vm)
    };
    journals.iter().map(of).collect()
}

pub(crate) fn pin(pin: &Pin) -> String {
    format!("pin {} at {} by {}\n", pin.id, pin.cut, pin.owner)
}

pub(crate) fn image_table(images: &[Image]) -> String {
    if images.is_empty() {
        return "no image is open\n".into();
    }
    let mut rows = vec![["IMAGE", "VM", "AS OF", "WRITTEN", "OWNER", "SOCKET"].map(str::to_owned)];
    for image in images {
        rows.push([
            image.id.clone(),
            image.vm.clone(),
            image.cut.clone(),
            if image.writable { bytes(image.overlay_bytes) } else { "read-only".into() },
            image.owner.clone(),
            image.error.clone().filter(|_| image.socket.is_empty()).unwrap_or_else(|| image.socket.clone()),
        ]);
    }
    table(&rows)
}

pub(crate) fn failover(failover: &Failover) -> String {
    let mut out = format!(
        "group {}: failover {} as of {}{}, epoch {}\n",
        failover.group,
        failover.phase,
        failover.cut,
        failover.taken_at.as_ref().map_or_else(String::new, |at| format!(" ({at} or somewhat later)")),
        failover.epoch
    );
    for vm in &failover.vms {
        let pid = vm.pid.map(|pid| format!(", process {pid}")).unwrap_or_default();
        let _ = writeln!(out, "  {}  {}{pid}, image {}, socket {}", vm.vm, vm.run_state, vm.image, vm.socket);
        for disk in &vm.disks {
            let (size, read) = (bytes(disk.size_bytes), bytes(disk.read_bytes));
            let (written, failed) = (bytes(disk.written_bytes), disk.failed_requests);
            let _ = writeln!(
                out,
                "    {} {size}, {read} read, {written} written, {failed} requests failed",
                disk.name
            );
        }
        if let Some(event) = &vm.last_event {
            let _ = writeln!(out, "    {} at {}", event.what, event.at);
        }
    }
    for left_out in &failover.left_out {
        let _ = writeln!(out, "  {}  LEFT OUT: {}", left_out.vm, left_out.why);
    }
    for note in &failover.notes {
        let _ = writeln!(out, "NOTE: {note}");
    }
    if failover.phase == "running" {
        let group = format!("{}/{}", failover.site, failover.group);
        let _ = writeln!(out, "keep it:  holdfast failover commit --group {group}");
        let _ = writeln!(out, "undo it:  holdfast failover rollback --group {group}");
    }
    out
}

pub(crate) fn groups(groups: &[Group]) -> String {
    if groups.is_empty() {
        return "no group is known here\n".into();
    }
    let mut rows = vec![
        ["GROUP", "SITE", "SIDE", "EPOCH", "FAILOVER", "VMS", "FORMER", "OTHER HOSTS", "ID"]
            .map(str::to_owned),
    ];
    for group in groups {
        rows.push([
            group.name.clone(),
            group.site.clone(),
            group.side.clone(),
            group.epoch.to_string(),
            group.failover.as_ref().map_or("-".into(), |failover| failover.phase.clone()),
            group.vms.join(" "),
            if group.former.is_empty() { "-".into() } else { group.former.join(" ") },
            hosts(group),
            group.id.clone(),
        ]);
    }
    table(&rows)
}

fn hosts(group: &Group) -> String {
    let named = |host: &String| match group.hosts_away.contains(host) {
        true => format!("{host} (away)"),
        false => host.clone(),
    };
    match &group.coordinator {
        Some(coordinator) => format!("coordinated by {coordinator}"),
        None if group.hosts.is_empty() => "-".into(),
        None => group.hosts.iter().map(named).collect::<Vec<_>>().join(", "),
    }
}

pub(crate) fn operations(page: &OperationPage) -> String {
    if page.operations.is_empty() {
        return "there is none\n".into();
    }
    let mut rows = vec![["KIND", "ABOUT", "STATE", "STEPS", "BEGAN", "ID"].map(str::to_owned)];
    let row = |operation: &Operation| {
        [
            operation.kind.clone(),
            operation.about.clone(),
            operation.state.clone(),
            format!("{} of {}", operation.steps_done, operation.steps.len()),
            operation.began_at.clone(),
            operation.id.clone(),
        ]
    };
    rows.extend(page.operations.iter().map(row));
    let mut out = table(&rows);
    if let Some(next) = &page.next {
        let _ = writeln!(out, "more behind: --cursor {next}");
    }
    out
}

pub(crate) fn operation(operation: &Operation) -> String {
    let Operation { id, kind, about, state, steps_done, steps, .. } = operation;
    let mut out =
        format!("operation {id}: {kind} of {about}, {state}, {steps_done} of {} steps\n", steps.len());
    if let Some(step) = &operation.step {
        let (done, total) = (bytes(operation.bytes_done), bytes(operation.bytes_total));
        let far = if operation.bytes_total > 0 { format!(": {done} of {total}") } else { String::new() };
        let _ = writeln!(out, "  now: {step}{far}");
    }
    let why = if operation.ended_at.is_some() { "taken back" } else { "goes back" };
    for (what, text) in [(why, &operation.why), ("in its way", &operation.trouble)] {
        if let Some(text) = text {
            let _ = writeln!(out, "  {what}: {text}");
        }
    }
    for left in &operation.left_undone {
        let _ = writeln!(out, "  left: {left}");
    }
    let ended = operation.ended_at.as_ref().map_or_else(String::new, |at| format!(", ended {at}"));
    let _ = writeln!(out, "  began {}{ended}", operation.began_at);
    if operation.ended_at.is_none() {
        let _ = writeln!(out, "wait:     holdfast operation wait {id}");
    }
    for (action, what) in [("cancel", "undo it: "), ("leave", "leave it:")] {
        if operation.allows(action) {
            let _ = writeln!(out, "{what} holdfast operation {action} {id}");
        }
    }
    out
}

/// Columns as wide as their widest cell.
pub(crate) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut widths = [0; N];
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        let _ = writeln!(out, "{}", line.join("  ").trim_end());
    }
    out
}

/// A size a person can read.
pub(crate) fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

fn seconds(count: u64) -> String {
    match count {
        0..120 => format!("{count} s"),
        120..7200 => format!("{} min", count / 60),
        7200..172_800 => format!("{} h", count / 3600),
        _ => format!("{} d", count / 86_400),
    }
}
