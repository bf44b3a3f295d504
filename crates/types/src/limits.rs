//! The one file of limits: every queue, message, retry and buffer is bounded by a line here.

use std::time::Duration;

/// The unit of the dirty bitmap and of sync, in bytes.
pub const BLOCK_BYTES: u64 = 64 << 10;
/// A region of the dirty-region log, in bytes.
pub const REGION_LOG_BYTES: u64 = 16 << 20;
/// What the disks are seen as is noted in the dirty-region log so often.
pub const REGION_LOG_NOTE_INTERVAL: Duration = Duration::from_secs(10);
/// A change of a disk later than this after the last such note is not taken for the agent's own.
pub const REGION_LOG_NOTE_LATE_MAX: Duration = Duration::from_secs(20);
/// The most journals of one site that are made at once.
pub const JOURNALS_MADE_AT_ONCE_MAX: usize = 32;
/// The most groups of one site that are remembered once no VM of them is kept.
pub const REMEMBERED_GROUPS_MAX: usize = 1024;
/// The most places of an image that are remembered as lost and zeroes; the bytes of more are counted.
pub const ZEROED_PLACES_MAX: usize = 1024;
/// The longest lock of a history, in seconds: ten years. No one person takes it back.
pub const LOCK_SECONDS_MAX: u64 = 3660 * 86_400;
/// A request to lift a lock is confirmed within so long, in seconds.
pub const LIFT_SECONDS: u64 = 86_400;
/// The smallest unit a guest addresses, in bytes.
pub const SECTOR_BYTES: u64 = 512;

/// The largest payload of one record, in bytes; a larger guest write is journaled in pieces.
pub const RECORD_BYTES_MAX: u64 = 1 << 20;
/// The longest range of one record without a payload, in bytes: a longer discard is made in pieces.
pub const RANGE_BYTES_MAX: u64 = 1 << 30;
/// The longest piece of a range that is zeroed by writing zeroes, in bytes.
pub const SLOW_ZERO_BYTES_MAX: u64 = 16 << 20;
/// Plain bytes of one frame of a batch.
pub const FRAME_BYTES: usize = 64 << 10;
/// Payload after which a batch is closed, in plain bytes.
pub const BATCH_BYTES_TARGET: usize = 1 << 20;
/// The largest batch anybody accepts, in bytes as encoded.
pub const BATCH_BYTES_MAX: usize = 4 << 20;
/// The most records in a batch.
pub const BATCH_RECORDS_MAX: usize = 4096;

/// The largest message on the wire, in bytes with its header.
pub const MESSAGE_BYTES_MAX: usize = BATCH_BYTES_MAX + (64 << 10);
/// The longest name of a VM, a group, a disk or a file of a definition, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// The longest explanation of a refusal, in bytes.
pub const DETAIL_BYTES_MAX: usize = 2048;
/// The longest words of a tag, in bytes.
pub const TAG_BYTES_MAX: usize = 200;
/// The largest VM definition, in bytes.
pub const DEFINITION_BYTES_MAX: usize = 256 << 10;
/// The most files (kernel, initrd, firmware) a definition names.
pub const ARTIFACTS_MAX: usize = 16;
/// The largest such file, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 1 << 30;
/// The part of such a file one message carries, in bytes.
pub const ARTIFACT_PART_BYTES: usize = 1 << 20;
/// The most disks of one VM.
pub const DISKS_MAX: usize = 64;
/// The largest disk, in bytes: 64 TiB.
pub const DISK_BYTES_MAX: u64 = 64 << 40;

/// Sent but not yet acknowledged bytes of one stream.
pub const WINDOW_BYTES: usize = 16 << 20;
/// The same of all streams to one peer.
pub const PEER_WINDOW_BYTES: u64 = 128 << 20;
/// Priority of a group on the link: default and range.
pub const PRIORITY_DEFAULT: u64 = 5;
pub const PRIORITY_RANGE: (u64, u64) = (1, 9);
/// Blocks one message compares: 1 MiB of a disk. At most 64 have a bit each in the answer.
pub const COMPARE_BLOCKS_MAX: usize = 16;
/// Runs of blocks of one stream that are being compared at once.
pub const COMPARES_MAX: usize = 64;
/// Places a verification lists; what differs beside them is counted.
pub const VERIFY_PLACES_MAX: usize = 1000;
/// Blocks of one VM that its sync goes on without, since they cannot be read.
pub const UNREADABLE_BLOCKS_MAX: u64 = 256;
/// What is read by itself of a block that cannot be read as a whole, in bytes.
pub const UNREADABLE_UNIT_BYTES: u64 = 4096;
/// Blocks of one VM that have differed, and are looked at again before that is believed.
pub const DOUBTED_BLOCKS_MAX: usize = 4096;
/// Batches read from a stream but not yet written to the journal.
pub const RECEIVE_QUEUE_BATCHES: usize = 16;

/// Runs of blocks of one VM that are on their way at once, about 50 bytes each: writes that would make it more only
/// mark the bitmap.
pub const ON_THE_WAY_RUNS_MAX: usize = 4 << 20;

/// What is done in one turn under a VM's sequencer lock: acknowledged records, runs of blocks, blocks of a map.
pub const RELEASE_RECORDS_A_TURN: usize = 32;
pub const RUNS_A_TURN: usize = 1024;
pub const UNSENT_BLOCKS_A_TURN: u64 = 4096;
/// How often whoever has had a turn yields to those that wait for the lock.
pub const GIVE_WAY_YIELDS_MAX: usize = 64;

/// Default memory buffer of one VM, in bytes.
pub const BUFFER_BYTES_DEFAULT: u64 = 64 << 20;
/// Smallest and largest memory buffer of one VM, in bytes.
pub const BUFFER_BYTES_RANGE: (u64, u64) = (1 << 20, 4 << 30);

/// Memory of all buffers of an agent, in bytes: default and range.
pub const BUFFER_POOL_BYTES_DEFAULT: u64 = 2 << 30;
pub const BUFFER_POOL_BYTES_RANGE: (u64, u64) = (1 << 20, 1 << 40);
/// Spill of one VM: default and largest, in bytes. 0 is none.
pub const SPILL_BYTES_DEFAULT: u64 = 10 << 30;
pub const SPILL_BYTES_MAX: u64 = 16 << 40;
/// A file of the spill, in bytes.
pub const SPILL_FILE_BYTES: u64 = 64 << 20;

/// Synchronous mode: how long a guest's write waits at most before the link counts as stalled.
pub const SYNC_TIMEOUT_SECONDS_DEFAULT: u64 = 5;
pub const SYNC_TIMEOUT_SECONDS_RANGE: (u64, u64) = (1, 300);

/// How long somebody who leaves waits for the recovery side to have the writes he holds, all of them together. What it
/// does not have by then stays unanswered: whoever asked for it asks again.
pub const HELD_AT_END_MAX: Duration = Duration::from_millis(500);
/// How long the agent's start waits for its VMs to be taken up. Whose disk does not answer by then is taken up later.
pub const VM_START_MAX: Duration = Duration::from_secs(10);
/// The same for the journals that it keeps for others, all together; and how many of one disk it opens at once.
pub const JOURNALS_START_MAX: Duration = Duration::from_secs(10);
pub const JOURNALS_OPENED_AT_ONCE: usize = 2;
/// How long a VM may take to stop before the agent ends without it.
pub const VM_STOP_MAX: Duration = Duration::from_secs(30);

/// Automatic checkpoints: default and range of the interval, in seconds.
pub const CHECKPOINT_INTERVAL_DEFAULT: Duration = Duration::from_secs(5);
pub const CHECKPOINT_INTERVAL_SECONDS_RANGE: (u64, u64) = (1, 60);

/// A cut across hosts holds no acknowledgement longer than this.
pub const CUT_HOLD_MAX: Duration = Duration::from_millis(50);
/// A cut is given up where not all hosts have made it so soon: before any of them lets go by itself.
pub const CUT_DECIDE_MAX: Duration = Duration::from_millis(40);
/// How far above what the hosts of a group have drawn a cut across them is set.
pub const CUT_MARGIN: u64 = 1 << 14;
/// Hosts of one group beside its coordinator.
pub const GROUP_HOSTS_MAX: usize = 64;

/// History window: default and range.
pub const HISTORY_DEFAULT: Duration = Duration::from_secs(24 * 3600);
pub const HISTORY_SECONDS_RANGE: (u64, u64) = (3600, 30 * 24 * 3600);
/// Journal size limit: range in bytes (1 GB to 20 TB). Without one the disk is the limit.
pub const JOURNAL_BYTES_RANGE: (u64, u64) = (1_000_000_000, 20_000_000_000_000);
/// The least soft limit: what the least hard one has where nobody sets it.
pub const JOURNAL_SOFT_BYTES_MIN: u64 = JOURNAL_BYTES_RANGE.0 / 10 * 9;
/// Segment size: default and range, in bytes.
pub const SEGMENT_BYTES_DEFAULT: u64 = 256 << 20;
pub const SEGMENT_BYTES_RANGE: (u64, u64) = (16 << 20, 1 << 30);

/// Seconds of a stream a segment is meant to hold: its size is doubled or halved towards that.
pub const SEGMENT_FILL_SECONDS: u64 = 120;
/// Files of old segments kept by a journal to be written anew.
pub const SPARE_SEGMENTS_MAX: usize = 2;
/// Sealed segments whose index is still in memory, of one journal.
pub const FROZEN_TABLES_MAX: usize = 4;
/// Index entries in memory after which a segment is sealed, whatever its size: some 50 to 270 bytes each.
pub const TABLE_ENTRIES_MAX: usize = 1 << 19;
/// Segment files one journal has open to read from.
pub const OPEN_SEGMENTS_MAX: usize = 64;
/// Index runs of one level that are merged into one of the next.
pub const RUN_FAN_OUT: usize = 8;
/// Pieces of disks that one journal knows to be lost: at most some 400 KiB of its manifest.
pub const LOST_PIECES_MAX: usize = 4096;
/// Places that are damaged and have words of their own in a journal's manifest; of more the oldest become one.
pub const DAMAGE_TOLD_MAX: usize = 256;
/// Of those that are found together.
pub const DAMAGE_TOLD_TOGETHER_MAX: usize = 16;
/// Runs of blocks that a recovery side asks for again in one message: neighbours become one where there would be more.
pub const SEND_AGAIN_RUNS_MAX: usize = 1024;
/// How often it asks, and how often it is heard.
pub const SEND_AGAIN_INTERVAL: Duration = Duration::from_secs(10);
/// It is not heard again before what it had asked for could have been sent at this many bytes a second.
pub const SEND_AGAIN_BYTES_PER_SECOND: u64 = 100 << 20;
/// Segments folded in one go.
pub const FOLD_SEGMENTS_MAX: usize = 16;
/// Bytes written to replicas in one step of a fold, about; what is left is another step's.
pub const FOLD_STEP_BYTES: u64 = 1 << 30;
/// Guest bytes whose before-images are written in one step, about.
pub const UNDO_STEP_BYTES: u64 = 64 << 20;
/// Caches of all journals of a process: batches' tables, and decompressed frames, in bytes.
pub const TABLE_CACHE_BYTES: u64 = 64 << 20;
pub const FRAME_CACHE_BYTES: u64 = 64 << 20;

/// Checkpoints are all kept up to the first age, then one a minute up to the second, in seconds.
pub const KEEP_ALL_SECONDS_DEFAULT: u64 = 24 * 3600;
pub const KEEP_MINUTELY_SECONDS_DEFAULT: u64 = 7 * 24 * 3600;
/// Bytes that journals leave free on their file system: default and range.
pub const FREE_BYTES_MIN_DEFAULT: u64 = 16 << 20;
pub const FREE_BYTES_MIN_RANGE: (u64, u64) = (1 << 20, 1 << 50);
/// Scrubbing of all journals of an agent, in bytes a second.
pub const SCRUB_BYTES_PER_SECOND_DEFAULT: u64 = 8 << 20;

/// RPO bound: default and range, in seconds.
pub const RPO_SECONDS_DEFAULT: u64 = 60;
pub const RPO_SECONDS_RANGE: (u64, u64) = (1, 3600);

/// A quiet stream says so this often.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(1);
/// A peer's clock is asked for this often.
pub const CLOCK_INTERVAL: Duration = Duration::from_secs(30);
/// A peer that says nothing this long is gone.
pub const PEER_SILENCE_MAX: Duration = Duration::from_secs(10);
/// The first and the longest wait before a lost link is tried again.
pub const RECONNECT_DELAY_MIN: Duration = Duration::from_millis(200);
pub const RECONNECT_DELAY_MAX: Duration = Duration::from_secs(5);
/// The wait before a peer that refused us is asked again.
pub const REFUSED_RETRY_DELAY: Duration = Duration::from_secs(5);
/// TCP connect and TLS handshake together may take this long; of one who connects, all until it is known.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections to one port that have not shown yet who they are: in all, and of one address.
pub const UNKNOWN_CONNECTIONS_MAX: usize = 256;
pub const UNKNOWN_CONNECTIONS_OF_ADDRESS_MAX: usize = 64;
/// After a connection could not be accepted, as where there are no descriptors left.
pub const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(500);
/// A TCP connection on which nothing comes is asked after this long, and then so often, whether anybody is there.
pub const TCP_PROBE_AFTER: Duration = Duration::from_secs(15);
pub const TCP_PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// One whose other end acknowledges nothing this long is ended.
pub const TCP_SILENCE_MAX: Duration = Duration::from_secs(30);

/// Streams one agent accepts at once.
pub const STREAMS_MAX: usize = 4096;
/// Of those of one site: as many as it may have VMs here, and what comes anew while the connection before still stands.
pub const STREAMS_OF_SITE_MAX: usize = 3072;
/// VMs that one agent keeps for one site, those that have left among them.
pub const KEPT_VMS_OF_SITE_MAX: usize = 2048;
/// Connections over TCP to the API of one agent, and how long a request's head and its body may take to arrive.
/// Half of them are for those who only look.
pub const API_CONNECTIONS_MAX: usize = 256;
/// Of one user or certificate.
pub const API_CONNECTIONS_OF_ONE_MAX: usize = 64;
/// How long whoever commands something of a VM waits until it is begun.
pub const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a change waits for its place in the audit record, before it is refused.
pub const AUDIT_TIMEOUT: Duration = Duration::from_secs(10);
/// The record's files: how long each is, and how many are kept.
pub const AUDIT_FILE_BYTES: u64 = 4 << 20;
pub const AUDIT_FILES_MAX: usize = 16;
/// What is recorded of a path and its query.
pub const AUDIT_PATH_BYTES_MAX: usize = 512;
/// Of users of the host, and of certificates, without a role, who are told so.
pub const API_REFUSED_CONNECTIONS_MAX: usize = 16;
pub const API_REFUSED_CONNECTIONS_OF_ONE_MAX: usize = 4;
pub const API_HEAD_TIMEOUT: Duration = Duration::from_secs(10);
pub const API_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Freed memory of guests' requests that is kept to be used again, in bytes.
pub const BOUNCE_KEPT_BYTES: usize = 128 << 20;
/// Requests of one queue that the disk works on at once.
pub const QUEUE_DEPTH_MAX: usize = 256;
/// Threads of one queue for requests that have to be waited for.
pub const QUEUE_WORKERS_MAX: usize = 8;
/// NBD connections to one disk.
pub const NBD_CONNECTIONS_MAX: usize = 16;
/// NBD connections over TCP to all disks of an agent.
pub const NBD_TLS_CONNECTIONS_MAX: usize = 1024;
/// Of one certificate, which may be that of a hypervisor with many VMs.
pub const NBD_TLS_CONNECTIONS_OF_ONE_MAX: usize = 512;
/// Requests of one NBD connection that are worked on at once.
pub const NBD_REQUESTS_IN_FLIGHT_MAX: usize = 128;
/// The largest NBD read or write, in bytes.
pub const NBD_REQUEST_BYTES_MAX: u32 = 64 << 20;
/// Data of one NBD connection's reads and writes that are worked on at once.
pub const NBD_BYTES_IN_FLIGHT_MAX: u64 = 128 << 20;
/// Replies that a client has not taken, without the data of reads, after which none of its requests is begun.
pub const NBD_HEADS_BYTES_MAX: u64 = 1 << 20;
/// The longest option a client may send while it negotiates, in bytes.
pub const NBD_OPTION_BYTES_MAX: u32 = 16 << 10;
/// Queues of one vhost-user disk, and descriptors of one queue.
pub const VIRTIO_QUEUES_MAX: usize = 16;
pub const VIRTIO_QUEUE_SIZE_MAX: u16 = 1024;
/// Descriptors of one request, and of them those for data.
pub const VIRTIO_DESCRIPTORS_MAX: u32 = 1024;
pub const VIRTIO_SEGMENTS_MAX: u32 = 254;
/// Data of one request, in bytes, and data of one queue's requests after which no more is taken.
pub const VIRTIO_REQUEST_BYTES_MAX: u64 = 64 << 20;
pub const VIRTIO_BYTES_IN_FLIGHT_MAX: u64 = 64 << 20;
/// Regions of memory of all guests, and what else they share with the agent.
pub const SHARED_MAPPINGS_MAX: usize = 8192;
/// Regions of a guest's memory.
pub const VIRTIO_MEMORY_SLOTS_MAX: usize = 32;
/// How long a hypervisor's export may take to answer a read.
pub const NBD_REPLY_PATIENCE: Duration = Duration::from_secs(30);
/// How long a hypervisor's monitor may take for all it says until a command is answered.
pub const QMP_ANSWER_PATIENCE: Duration = Duration::from_secs(5);
/// The longest line a hypervisor's monitor may say, in bytes.
pub const QMP_LINE_BYTES_MAX: u64 = 16 << 20;
/// The same of a VM that the agent has started itself, of which it asks little.
pub const QMP_GUEST_LINE_BYTES_MAX: u64 = 256 << 10;
/// Events of such a VM that are read in a second, and the letters of a disk's name in them.
pub const QMP_GUEST_EVENTS_PER_SECOND: u32 = 20;
pub const QMP_GUEST_NAME_CHARS_MAX: usize = 64;
/// How often the change log of a VM under the tap is begun anew: default and range, in seconds.
pub const CHANGE_LOG_SECONDS_DEFAULT: u64 = 300;
pub const CHANGE_LOG_SECONDS_RANGE: (u64, u64) = (1, 86_400);
/// Open images of one agent.
pub const IMAGES_MAX: usize = 256;
/// Rows of one page of a list.
pub const PAGE_ROWS_MAX: usize = 1000;
pub const PAGE_ROWS_DEFAULT: usize = 100;

/// So many sequences may lie between a write that was left out of a stream and the one that overwrites it.
pub const LEFT_OUT_REACH_MAX: u64 = 1 << 32;

/// How many failovers a peer may know of that this side has not heard of, where the epoch is one that no peer may lift
/// it to otherwise. Too few for a peer that lies to come to the end of all epochs by it.
pub const EPOCHS_AHEAD_MAX: u64 = 1024;

/// How long no block is copied where there was no room for the last one, and no sync closed that could not be.
pub const COPY_RETRY_DELAY: Duration = Duration::from_millis(200);

/// Operations of one kind that go on at once at one side of an agent: each has a thread of its own. What ends something is
/// not counted: there is one at most for each thing that there is.
pub const OPERATIONS_MAX: usize = 256;
/// Operations that have ended and are still told of.
pub const ENDED_OPERATIONS_MAX: usize = 1000;
/// The longest key by which a client tells that it asks for the same thing again.
pub const OPERATION_KEY_BYTES_MAX: usize = 128;
/// How long one request waits for an operation's end, in seconds.
pub const OPERATION_WAIT_SECONDS_MAX: u64 = 3600;
/// Requests for operations that are looked at at once and have begun none yet: each has a thread.
pub const OPERATION_REQUESTS_MAX: usize = 256;
