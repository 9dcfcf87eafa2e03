//! A device that passes everything on to another one, and keeps a list of what was captured.

use crate::backend;
use crate::backend::cuda::driver::{
    Address, Command, DeviceInfo, Driver, Fetch, Gemm, Graph, Launch, Result,
};
use crate::backend::cuda::{Cuda, locked};
use std::sync::{Arc, Mutex};

pub struct Listing {
    driver: Arc<dyn Driver>,
    lists: Mutex<Lists>,
}

#[derive(Default)]
struct Lists {
    /// Commands captured so far, where a capture is open.
    open: Option<Vec<Command>>,
    last: Vec<Command>,
}

impl Listing {
    /// A backend on the same device, and a list of what is captured on it from here on.
    ///
    /// # Errors
    /// Where the device has no memory left.
    pub fn around(cuda: &Cuda) -> backend::Result<(Cuda, Arc<Self>)> {
        let listing = Arc::new(Listing::new(cuda.driver().clone()));
        Ok((cuda.on(listing.clone())?, listing))
    }

    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Listing { driver, lists: Mutex::default() }
    }

    /// The commands of the last capture that was ended, in their order; none before the first.
    pub fn last_graph(&self) -> Vec<Command> {
        locked(&self.lists).last.clone()
    }

    /// Keeps a command that was taken, if it was captured.
    fn keep(&self, command: impl FnOnce() -> Command) {
        if let Some(open) = &mut locked(&self.lists).open {
            open.push(command());
        }
    }
}

impl Driver for Listing {
    fn info(&self) -> &DeviceInfo {
        self.driver.info()
    }

    fn allocate(&self, bytes: usize) -> Result<Address> {
        self.driver.allocate(bytes)
    }

    fn free(&self, address: Address) {
        self.driver.free(address);
    }

    fn allocated(&self) -> (usize, usize) {
        self.driver.allocated()
    }

    fn free_memory(&self) -> Result<usize> {
        self.driver.free_memory()
    }

    fn clear(&self, to: Address, bytes: usize) -> Result<()> {
        self.driver.clear(to, bytes)?;
        self.keep(|| Command::Clear { to, bytes });
        Ok(())
    }

    fn copy(&self, to: Address, from: Address, bytes: usize) -> Result<()> {
        self.driver.copy(to, from, bytes)?;
        self.keep(|| Command::Copy { to, from, bytes });
        Ok(())
    }

    fn upload(&self, to: Address, from: &[u8]) -> Result<()> {
        self.driver.upload(to, from)
    }

    fn download(&self, from: Address, to: &mut [u8]) -> Result<()> {
        self.driver.download(from, to)
    }

    fn feed(&self, pieces: &[(Address, &[u8])]) -> Result<()> {
        self.driver.feed(pieces)
    }

    fn fetch(&self, from: Address, bytes: usize) -> Result<Box<dyn Fetch>> {
        self.driver.fetch(from, bytes)
    }

    unsafe fn launch(&self, launch: &Launch) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.driver.launch(launch) }?;
        self.keep(|| Command::Launch(Box::new(*launch)));
        Ok(())
    }

    unsafe fn gemm(&self, gemm: &Gemm) -> Result<()> {
        // SAFETY: as the caller promises.
        unsafe { self.driver.gemm(gemm) }?;
        self.keep(|| Command::Gemm(*gemm));
        Ok(())
    }

    fn overlap(&self, on: bool) {
        self.driver.overlap(on);
    }

    fn can_capture(&self) -> bool {
        self.driver.can_capture()
    }

    fn begin_capture(&self) -> Result<()> {
        locked(&self.lists).open = None;
        self.driver.begin_capture()?;
        locked(&self.lists).open = Some(Vec::new());
        Ok(())
    }

    fn end_capture(&self) -> Result<Box<dyn Graph>> {
        let commands = locked(&self.lists).open.take();
        let graph = self.driver.end_capture()?;
        locked(&self.lists).last = commands.unwrap_or_default();
        Ok(graph)
    }

    fn replay(&self, graph: &dyn Graph) -> Result<()> {
        self.driver.replay(graph)
    }

    fn measures(&self) -> bool {
        self.driver.measures()
    }

    fn recall(&self, key: &str) -> Option<String> {
        self.driver.recall(key)
    }

    fn remember(&self, key: &str, choice: &str) -> Result<String> {
        self.driver.remember(key, choice)
    }

    fn forgets(&self) -> Option<String> {
        self.driver.forgets()
    }

    fn synchronize(&self) -> Result<()> {
        self.driver.synchronize()
    }

    fn profile(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<()> {
        self.driver.profile(body)
    }

    fn seconds(&self, body: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        self.driver.seconds(body)
    }
}
