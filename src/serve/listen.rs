//! The life of a server: listens, serves connections, and goes down in order.
//!
//! On the first signal `/ready` says no while requests are still taken for a while, so that balancers move on; then nothing new is
//! taken, what waits is refused, what runs is finished, or stopped when it takes too long.

use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};

use super::ask::Offer;
use super::cancel::Why;
use super::http::router;
use super::keys::Keys;
use super::limits::{CONNECTIONS_MAX, HEAD_SECONDS_MAX, seconds};
use super::server::{Server, Settings, State};
use super::{Address, ServeJob, process, worker};
use crate::error::{no_thread, usage};
use crate::model::Version;
use crate::pipeline::Model;
use crate::progress::say;
use crate::stop::Stop;

/// How often signals and what has been kept long enough are looked at.
const LOOK: Duration = Duration::from_millis(50);
/// What stops when it is asked to has this long to do so.
const LAST: Duration = Duration::from_secs(10);

/// Serves until a signal comes or the last device is lost.
///
/// # Errors
/// A [`crate::error::UsageError`]: an address that cannot be listened at, or that is open to others without a key; a fault of model or device.
pub fn run(job: &ServeJob, stop: &Stop) -> Result<()> {
    if job.worker {
        return process::work_for_another(job, stop);
    }
    let keys =
        job.keys.as_deref().map(Keys::parse).transpose().context("the keys cannot be used").map_err(usage)?.unwrap_or_default();
    check_open(job, &keys).map_err(usage)?;
    let model = worker::open_model(job)?;
    let server = Arc::new(Server::new(Settings {
        offer: offer(job, &model),
        hosts: hosts(job, &keys),
        keys,
        origins: job.origins.clone(),
        log_prompts: job.log_prompts,
        quiet: job.quiet,
        queue: job.queue,
    }));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(8)
        .enable_io()
        .enable_time()
        .build()
        .map_err(no_thread)?;
    let listener = runtime.block_on(Listener::bind(&job.listen)).map_err(usage)?;
    say(&format!("listening on {}", listener.name));
    stop.begin();
    let (sender, ended) = mpsc::channel();
    let (workers, job_of_worker) = (server.clone(), Arc::new(job.clone()));
    let life = move || {
        drop(sender.send(match job_of_worker.devices.is_empty() {
            true => worker::live(&workers, &job_of_worker, model),
            false => process::live(&workers, &job_of_worker),
        }));
    };
    std::thread::Builder::new().name("worker".into()).spawn(life).map_err(no_thread)?;
    let ended = runtime.block_on(serve(&server, job, &listener, stop, &ended));
    // A second signal may still end the process while connections close.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

/// Serves connections until it is time to go; then goes down in order.
async fn serve(
    server: &Arc<Server>,
    job: &ServeJob,
    listener: &Listener,
    stop: &Stop,
    ended: &mpsc::Receiver<Result<()>>,
) -> Result<()> {
    let (graceful, router) = (GracefulShutdown::new(), router(server));
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut over = tokio::select! {
        over = until_end(server, stop, ended) => over,
        () = listener.accept(&connections, &router, &graceful) => None,
    };
    if over.is_none() && !job.drain_delay.is_zero() {
        say(&format!("going down: requests are taken for {} s more", job.drain_delay.as_secs_f64()));
        server.advance(State::Draining);
        over = tokio::select! {
            () = sleep(job.drain_delay) => None,
            over = lost(ended) => Some(over),
            () = listener.accept(&connections, &router, &graceful) => None,
        };
    }
    listener.close();
    server.advance(State::Closing);
    let mut finished = Box::pin(graceful.shutdown());
    if timeout(job.drain_timeout, async { finish(server, &mut finished).await }).await.is_err() {
        say("what still runs is stopped");
        server.queue.stop(Why::Shutdown);
        let _ = timeout(LAST, finish(server, &mut finished)).await;
    }
    match over {
        Some(over) => over,
        None => {
            say("done");
            // A worker that has just failed has a reason that must not be lost.
            ended.try_recv().unwrap_or(Ok(()))
        }
    }
}

/// All connections are closed and all workers have nothing to do.
async fn finish(server: &Server, connections: &mut (impl Future<Output = ()> + Unpin)) {
    let idle = async {
        while server.queue.counts().running > 0 {
            sleep(LOOK).await;
        }
    };
    tokio::join!(idle, connections);
}

/// A signal (none), or the end of the workers.
async fn until_end(server: &Server, stop: &Stop, ended: &mpsc::Receiver<Result<()>>) -> Option<Result<()>> {
    loop {
        if stop.asked() {
            return None;
        }
        if let Ok(over) = ended.try_recv() {
            return Some(over);
        }
        server.jobs.tidy();
        sleep(LOOK).await;
    }
}

/// The end of the workers.
async fn lost(ended: &mpsc::Receiver<Result<()>>) -> Result<()> {
    loop {
        match ended.try_recv() {
            Ok(over) => return over,
            Err(_) => sleep(LOOK).await,
        }
    }
}

/// Refuses to be open to other machines without a key, unless that is what is wanted.
fn check_open(job: &ServeJob, keys: &Keys) -> Result<()> {
    if let Address::Tcp(address, _) = job.listen {
        ensure!(
            address.is_loopback() || !keys.is_empty() || job.no_auth,
            "{address} is open to other machines, and there is no key; give keys with --api-key-file, listen at 127.0.0.1, or say \
             --no-auth if anybody may ask"
        );
    }
    Ok(())
}

/// Names by which a server without keys that only this machine can reach may be called: a page of somebody else could have a name of
/// its own lead here.
fn hosts(job: &ServeJob, keys: &Keys) -> Option<Vec<String>> {
    let Address::Tcp(address, _) = job.listen else { return None };
    let mut own: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
    own.extend(Some(address.to_string()).filter(|address| !own.contains(address)));
    (address.is_loopback() && keys.is_empty()).then_some(own)
}

fn offer(job: &ServeJob, model: &Model) -> Offer {
    let own = match (model.is_demo, model.config.version) {
        (true, _) => "step1x-edit-demo",
        (false, Version::V1_0) => "step1x-edit-v1.0",
        (false, Version::V1_1) => "step1x-edit-v1.1",
    };
    let mut names = job.names.clone();
    names.extend([own, "step1x-edit"].map(String::from));
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    let generates = !model.is_demo && model.config.version != Version::V1_0;
    Offer { names, generates, edit: job.edit.clone(), deadline: job.deadline }
}

/// What listens, and as what people name it.
struct Listener {
    socket: std::sync::Mutex<Option<Arc<Socket>>>,
    name: String,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener, std::path::PathBuf),
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Socket::Unix(_, path) = self {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Listener {
    async fn bind(address: &Address) -> Result<Listener> {
        let cannot = |what: &dyn std::fmt::Display, error: std::io::Error| {
            anyhow!("cannot listen at {what}: {error}; choose another address with --listen")
        };
        let (socket, name) = match address {
            Address::Tcp(address, port) => {
                let shown = std::net::SocketAddr::new(*address, *port);
                let listener = TcpListener::bind(shown).await.map_err(|error| cannot(&shown, error))?;
                let name = format!("http://{}", listener.local_addr()?);
                (Socket::Tcp(listener), name)
            }
            Address::Unix(path) => {
                remove_dead(path).await?;
                let listener = UnixListener::bind(path).map_err(|error| cannot(&path.display(), error))?;
                (Socket::Unix(listener, path.clone()), format!("unix:{}", path.display()))
            }
        };
        Ok(Listener { socket: std::sync::Mutex::new(Some(Arc::new(socket))), name })
    }

    fn socket(&self) -> Option<Arc<Socket>> {
        self.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// From now on connections are refused.
    fn close(&self) {
        self.socket.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
    }

    /// Takes connections for ever.
    async fn accept(&self, connections: &Arc<Semaphore>, router: &Router, graceful: &GracefulShutdown) {
        let Some(socket) = self.socket() else { return };
        loop {
            let Ok(permit) = connections.clone().acquire_owned().await else { return };
            let taken = match &*socket {
                Socket::Tcp(listener) => listener.accept().await.map(|(stream, _)| {
                    // An answer's last bytes do not wait for more.
                    let _ = stream.set_nodelay(true);
                    attend(stream, permit, router, graceful);
                }),
                Socket::Unix(listener, _) => listener.accept().await.map(|(stream, _)| attend(stream, permit, router, graceful)),
            };
            if taken.is_err() {
                // Too many files are open, say; it may pass.
                sleep(LOOK).await;
            }
        }
    }
}

/// Removes a socket that nobody listens at any more, as a process that was killed leaves it.
async fn remove_dead(path: &Path) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    let Ok(found) = std::fs::symlink_metadata(path) else { return Ok(()) };
    ensure!(found.file_type().is_socket(), "{} exists and is no socket; choose another path with --listen", path.display());
    let alive = UnixStream::connect(path).await.is_ok();
    ensure!(!alive, "another program listens at {}; choose another path with --listen", path.display());
    Ok(std::fs::remove_file(path)?)
}

/// Serves one connection.
fn attend(
    stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
    permit: OwnedSemaphorePermit,
    router: &Router,
    graceful: &GracefulShutdown,
) {
    let service = TowerToHyperService::new(router.clone());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(seconds(HEAD_SECONDS_MAX))
        .half_close(false)
        .serve_connection(TokioIo::new(stream), service);
    let connection = graceful.watch(connection);
    tokio::spawn(async move {
        // What a client did wrong is its own affair.
        let _ = connection.await;
        drop(permit);
    });
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
    use tokio::time::{Instant, pause};

    use super::*;

    /// A head that does not end, and a connection on which nothing comes.
    #[test]
    fn heads_come_in_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            pause();
            for begun in ["", "GET / HTTP/1.1\r\nHost: a"] {
                let (mut client, stream) = duplex(4096);
                let connections = Arc::new(Semaphore::new(1));
                let permit = connections.clone().acquire_owned().await.unwrap();
                let graceful = GracefulShutdown::new();
                attend(stream, permit, &Router::new(), &graceful);
                client.write_all(begun.as_bytes()).await.unwrap();
                let since = Instant::now();
                let mut answer = Vec::new();
                client.read_to_end(&mut answer).await.unwrap();
                let waited = since.elapsed().as_secs_f64();
                assert!((19.0..22.0).contains(&waited), "{begun:?}: {waited} s, {:?}", String::from_utf8_lossy(&answer));
                assert_eq!(connections.available_permits(), 1);
            }
        });
    }
}
