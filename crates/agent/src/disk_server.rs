//! Disks on sockets: one for NBD, where each disk is an export, and one for vhost-user of each disk.

use crate::error::{OperationError, Result, with_sources};
use crate::sockets::RunDir;
use splitter::nbd::{Export, Private, Server};
use splitter::vhost_user::{DiskSocket, VhostServer};
use std::path::{Path, PathBuf};

/// Served disks. Dropping it closes all connections.
pub(crate) struct DiskServer {
    nbd: Server,
    /// Not there where the paths would be too long for sockets.
    vhost_user: Option<VhostServer>,
    vhost_user_sockets: Vec<PathBuf>,
}

impl std::fmt::Debug for DiskServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("DiskServer").field(&self.nbd.path()).finish()
    }
}

impl DiskServer {
    /// Serves disks at `FOLDER/NAME.sock`, and each at `FOLDER/NAME.DISK.vhost`, in a folder of `run_dir`.
    ///
    /// # Errors
    /// Where another process serves one of the sockets, or none can be made there.
    pub(crate) fn serve(run_dir: &RunDir, folder: &str, name: &str, exports: Vec<Export>) -> Result<Self> {
        let folder = run_dir.served(folder)?;
        let vhost_path = |export: &Export| folder.join(format!("{name}.{}.vhost", export.name));
        let sockets: Vec<_> = exports
            .iter()
            .map(|export| DiskSocket { path: vhost_path(export), export: export.clone() })
            .collect();
        let conflict = |error: &dyn std::error::Error| OperationError::conflict(with_sources(error));
        let nbd =
            Server::bind(&folder.join(format!("{name}.sock")), exports).map_err(|error| conflict(&error))?;
        run_dir.give(nbd.path())?;
        let paths: Vec<PathBuf> = sockets.iter().map(|socket| socket.path.clone()).collect();
        let fits = paths.iter().all(|path| std::os::unix::net::SocketAddr::from_pathname(path).is_ok());
        if !fits {
            tracing::warn!(name, "no vhost-user sockets: their paths are too long; a shorter run_dir helps");
            return Ok(Self { nbd, vhost_user: None, vhost_user_sockets: Vec::new() });
        }
        let vhost_user = VhostServer::bind(sockets).map_err(|error| conflict(&error))?;
        paths.iter().try_for_each(|path| run_dir.give(path))?;
        Ok(Self { nbd, vhost_user: Some(vhost_user), vhost_user_sockets: paths })
    }

    /// Serves disks at `folder/NAME.sock` to one client, over NBD only.
    ///
    /// # Errors
    /// As [`DiskServer::serve`].
    pub(crate) fn serve_private(
        run_dir: &RunDir,
        folder: &str,
        name: &str,
        exports: Vec<Export>,
        private: Private,
    ) -> Result<Self> {
        let path = run_dir.served(folder)?.join(format!("{name}.sock"));
        let nbd = Server::bind_private(&path, exports, private)
            .map_err(|error| OperationError::conflict(with_sources(&error)))?;
        run_dir.give(nbd.path())?;
        Ok(Self { nbd, vhost_user: None, vhost_user_sockets: Vec::new() })
    }

    /// Hangs up on all clients at once. Whoever then drops this waits until what they have begun is done.
    pub(crate) fn hang_up(&self) {
        self.nbd.hang_up();
        if let Some(vhost_user) = &self.vhost_user {
            vhost_user.hang_up();
        }
    }

    /// The NBD socket.
    pub(crate) fn path(&self) -> &Path {
        self.nbd.path()
    }

    /// The vhost-user socket of a disk.
    pub(crate) fn vhost_user_socket(&self, disk: usize) -> Option<String> {
        self.vhost_user_sockets.get(disk).map(|path| path.display().to_string())
    }

    /// How many clients are connected.
    pub(crate) fn connections(&self) -> usize {
        self.nbd.connections() + self.vhost_user.as_ref().map_or(0, VhostServer::connections)
    }
}
