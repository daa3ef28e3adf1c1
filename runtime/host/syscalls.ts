/**
 * The system calls that Node.js lacks, through koffi. The only file that loads koffi.
 * All of them are synchronous and short, and act on the calling thread.
 */
import { closeSync, openSync } from 'node:fs';
import koffi from 'koffi';
import { KeelsonError } from './errors.ts';

const libc = koffi.load(null);
const c = {
  mount: libc.func(
    'int mount(const char *source, const char *target, const char *type, unsigned long flags, const char *data)',
  ),
  umount2: libc.func('int umount2(const char *target, int flags)'),
  unshare: libc.func('int unshare(int flags)'),
  setns: libc.func('int setns(int fd, int type)'),
  sethostname: libc.func('int sethostname(const char *name, size_t length)'),
  mknod: libc.func('int mknod(const char *path, unsigned int mode, unsigned long dev)'),
  mkfifo: libc.func('int mkfifo(const char *path, unsigned int mode)'),
  lsetxattr: libc.func(
    'int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags)',
  ),
  lgetxattr: libc.func(
    'int64_t lgetxattr(const char *path, const char *name, _Out_ void *value, size_t size)',
  ),
  syncfs: libc.func('int syncfs(int fd)'),
  chroot: libc.func('int chroot(const char *path)'),
  fchdir: libc.func('int fchdir(int fd)'),
  flock: libc.func('int flock(int fd, int operation)'),
  fcntl: libc.func('int fcntl(int fd, int command, long argument)'),
  utimensat: libc.func('int utimensat(int dirfd, const char *path, uintptr_t times, int flags)'),
  futimens: libc.func('int futimens(int fd, uintptr_t times)'),
  fsetxattr: libc.func('int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)'),
  socket: libc.func('int socket(int domain, int type, int protocol)'),
  ioctl: libc.func('int ioctl(int fd, unsigned long request, _Inout_ void *argument)'),
  close: libc.func('int close(int fd)'),
  pipe2: libc.func('int pipe2(_Out_ void *ends, int flags)'),
  // The C library's own wrappers are young (glibc 2.36); the numbers are the same on all processors.
  openTree: libc.func('syscall', 'long', ['long', 'int', 'const char *', 'unsigned int']),
  mountSetattr: libc.func('syscall', 'long', [
    ...['long', 'int', 'const char *', 'unsigned int', 'const void *', 'size_t'],
  ]),
  moveMount: libc.func('syscall', 'long', [
    ...['long', 'int', 'const char *', 'int', 'const char *', 'unsigned int'],
  ]),
  waitpid: libc.func('int waitpid(int pid, _Out_ int *status, int options)'),
  posix_spawnp: libc.func(
    'int posix_spawnp(_Out_ int *pid, const char *file, void *actions, void *attributes, const char **argv, const char **envp)',
  ),
  posix_spawnattr_init: libc.func('int posix_spawnattr_init(_Out_ void *attributes)'),
  posix_spawnattr_destroy: libc.func('int posix_spawnattr_destroy(_Inout_ void *attributes)'),
  posix_spawnattr_setflags: libc.func('int posix_spawnattr_setflags(_Inout_ void *attributes, short flags)'),
  posix_spawnattr_setsigmask: libc.func(
    'int posix_spawnattr_setsigmask(_Inout_ void *attributes, const void *set)',
  ),
  posix_spawnattr_setsigdefault: libc.func(
    'int posix_spawnattr_setsigdefault(_Inout_ void *attributes, const void *set)',
  ),
  posix_spawn_file_actions_init: libc.func('int posix_spawn_file_actions_init(_Out_ void *actions)'),
  posix_spawn_file_actions_destroy: libc.func('int posix_spawn_file_actions_destroy(_Inout_ void *actions)'),
  posix_spawn_file_actions_adddup2: libc.func(
    'int posix_spawn_file_actions_adddup2(_Inout_ void *actions, int from, int to)',
  ),
  posix_spawn_file_actions_addopen: libc.func(
    'int posix_spawn_file_actions_addopen(_Inout_ void *actions, int to, const char *path, int flags, unsigned int mode)',
  ),
  posix_spawn_file_actions_addchdir_np: libc.func(
    'int posix_spawn_file_actions_addchdir_np(_Inout_ void *actions, const char *path)',
  ),
  mallocTrim: libc.func('int malloc_trim(size_t pad)'),
  madvise: libc.func('int madvise(uintptr_t address, size_t length, int advice)'),
  socketpair: libc.func('int socketpair(int domain, int type, int protocol, _Out_ void *ends)'),
  connect: libc.func('int connect(int fd, const void *address, unsigned int length)'),
  dup3: libc.func('int dup3(int from, int to, int flags)'),
};

export const mountFlags = {
  RDONLY: 1,
  NOSUID: 2,
  NODEV: 4,
  NOEXEC: 8,
  REMOUNT: 32,
  NOATIME: 1024,
  BIND: 4096,
  REC: 16384,
  PRIVATE: 1 << 18,
  SLAVE: 1 << 19,
  SHARED: 1 << 20,
} as const;
export const umountFlags = { FORCE: 1, DETACH: 2, NOFOLLOW: 8 } as const;
export const cloneFlags = {
  FS: 0x200,
  NEWNS: 0x20000,
  NEWCGROUP: 0x02000000,
  NEWUTS: 0x04000000,
  NEWIPC: 0x08000000,
  NEWUSER: 0x10000000,
  NEWPID: 0x20000000,
  NEWNET: 0x40000000,
} as const;

const errorNames = new Map(
  Object.entries(koffi.os.errno as Record<string, number>).map(([name, number]) => [number, name]),
);

/** A path whose name is not UTF-8 comes as bytes (without a NUL), as `node:fs` takes it too. */
export type SyscallPath = string | Buffer;

function terminated(path: SyscallPath): SyscallPath {
  return typeof path === 'string' ? path : Buffer.concat([path, Buffer.alloc(1)]);
}

/** `details.errno` is the symbolic name (`EBUSY`). */
function check(result: number, what: string): number {
  if (result !== -1) return result;
  const errno = koffi.errno();
  const name = errorNames.get(errno) ?? `errno ${errno}`;
  throw new KeelsonError('SYSCALL_FAILED', `${what}: ${name}`, { details: { errno: name } });
}

/** mount(2). `flags` from `mountFlags`; `data` is the file system's own option string. */
export function mount(
  source: string | null,
  target: string,
  type: string | null,
  flags: number,
  data: string | null = null,
): void {
  check(c.mount(source, target, type, flags, data), `mount ${type ?? source ?? ''} on ${target}`);
}

/** Calls `work` on a thread of libuv's pool, whose mount namespace is the process's; its result. */
function aside(
  work: { async(...args: unknown[]): void },
  ...args: readonly (string | number | null)[]
): Promise<number | bigint> {
  return new Promise((resolve, reject) => {
    work.async(...args, (error: Error | null, result: number | bigint) =>
      error === null ? resolve(result) : reject(error),
    );
  });
}

/** `mount` without holding up the main thread: while containers start the kernel may keep it waiting for 10 ms. */
export async function mountAside(...args: Parameters<typeof mount>): Promise<void> {
  const [source, target, type, flags, data = null] = args;
  if ((await aside(c.mount, source, target, type, flags, data)) === 0) return;
  // The error number stayed on the other thread: here it is found again, or there is none any more.
  mount(...args);
}

const AT_FDCWD = -100;
const AT_EMPTY_PATH = 0x1000;
const AT_RECURSIVE = 0x8000;

/**
 * A copy of the mount at `path`, `recursive`: with those below it, as a descriptor that is closed on exec: open_tree(2),
 * Linux 5.2. It is mounted nowhere until `attachMount`, and goes with its descriptor where that never happens. Throws
 * SYSCALL_FAILED with `details.errno`.
 */
export function copyMount(path: string, { recursive }: CopyOptions): number {
  return check(Number(c.openTree(...copyArguments(path, recursive))), `open_tree ${path}`);
}

/** `copyMount` without holding up the main thread: a server of `path` that is gone keeps who asks waiting. */
export async function copyMountAside(path: string, { recursive }: CopyOptions): Promise<number> {
  const tree = Number(await aside(c.openTree, ...copyArguments(path, recursive)));
  if (tree !== -1) return tree;
  throw new KeelsonError('SYSCALL_FAILED', `open_tree ${path} failed`);
}

interface CopyOptions {
  readonly recursive: boolean;
}

function copyArguments(path: string, recursive: boolean): [number, number, string, number] {
  const OPEN_TREE = 428;
  const OPEN_TREE_CLONE_CLOEXEC = 1 | 0o2000000;
  return [OPEN_TREE, AT_FDCWD, path, OPEN_TREE_CLONE_CLOEXEC | (recursive ? AT_RECURSIVE : 0)];
}

/** Mounts what `copyMount` gave at `target`, links of which are followed: move_mount(2). */
export function attachMount(tree: number, target: string): void {
  const MOVE_MOUNT = 429;
  const F_EMPTY_PATH_T_SYMLINKS = 0x4 | 0x10;
  const moved = c.moveMount(MOVE_MOUNT, tree, '', AT_FDCWD, target, F_EMPTY_PATH_T_SYMLINKS);
  check(Number(moved), `mount a copy on ${target}`);
}

/**
 * Mounts the folder `source` (that mount only) at `target`, read-only, with ids as the user namespace at the path
 * `userNamespace` sees them (mount_setattr(2), "ID-mapped mounts"; Linux 5.12).
 */
export function mountShifted(source: string, target: string, userNamespace: string): void {
  const MOUNT_SETATTR = 442;
  const MOUNT_ATTR_RDONLY = 1n;
  const MOUNT_ATTR_IDMAP = 0x100000n;
  const namespace = openSync(userNamespace, 'r');
  try {
    const tree = copyMount(source, { recursive: false });
    try {
      // struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
      const attributes = Buffer.from(
        new BigUint64Array([MOUNT_ATTR_RDONLY | MOUNT_ATTR_IDMAP, 0n, 0n, BigInt(namespace)]).buffer,
      );
      check(
        Number(c.mountSetattr(MOUNT_SETATTR, tree, '', AT_EMPTY_PATH, attributes, attributes.length)),
        `shift the ids of ${source}`,
      );
      attachMount(tree, target);
    } finally {
      c.close(tree);
    }
  } finally {
    closeSync(namespace);
  }
}

/** umount2(2). Returns false where nothing was mounted at `target` (EINVAL) or `target` is gone (ENOENT). */
export function unmount(target: string, flags: number = umountFlags.NOFOLLOW): boolean {
  if (c.umount2(target, flags) === 0) return true;
  const name = errorNames.get(koffi.errno());
  if (name === 'EINVAL' || name === 'ENOENT') return false;
  throw new KeelsonError('SYSCALL_FAILED', `unmount ${target}: ${name}`, { details: { errno: name } });
}

/** `unmount` without holding up the main thread: the last user of a file system writes it out. */
export async function unmountAside(target: string, flags: number = umountFlags.NOFOLLOW): Promise<boolean> {
  return (await aside(c.umount2, target, flags)) === 0 || unmount(target, flags);
}

/** unshare(2), of the calling thread. */
export function unshare(flags: number): void {
  check(c.unshare(flags), 'unshare');
}

/** setns(2), of the calling thread; `type` 0 takes any namespace. */
export function setns(fd: number, type = 0): void {
  check(c.setns(fd, type), 'setns');
}

/** sethostname(2), in the UTS namespace of the calling thread. At most 64 bytes. */
export function setHostname(name: string): void {
  check(c.sethostname(name, Buffer.byteLength(name)), `set hostname ${name}`);
}

/** mknod(2). `mode` carries the file type bits. `major`/`minor` are packed as glibc's makedev does. */
export function mknod(path: SyscallPath, mode: number, major: number, minor: number): void {
  const dev =
    (BigInt(major & 0xfff) << 8n) |
    (BigInt(major & ~0xfff) << 32n) |
    BigInt(minor & 0xff) |
    (BigInt(minor & ~0xff) << 12n);
  check(c.mknod(terminated(path), mode, dev), `mknod ${path}`);
}

export function mkfifo(path: SyscallPath, mode: number): void {
  check(c.mkfifo(terminated(path), mode), `mkfifo ${path}`);
}

/** lsetxattr(2): does not follow a link at `path`. */
export function setXattr(path: SyscallPath, name: string, value: Buffer): void {
  check(c.lsetxattr(terminated(path), name, value, value.length, 0), `set ${name} on ${path}`);
}

const xattrValue = Buffer.alloc(65536);

/** lgetxattr(2): the value, or undefined where the attribute (or the file system's support) is absent. */
export function getXattr(path: SyscallPath, name: string): Buffer | undefined {
  const value = readXattr(path, name);
  return value === 'unsupported' ? undefined : value;
}

/** lgetxattr(2) that tells a file system without such attributes from a file without this one. */
export function readXattr(path: SyscallPath, name: string): Buffer | undefined | 'unsupported' {
  const size = Number(c.lgetxattr(terminated(path), name, xattrValue, xattrValue.length));
  if (size >= 0) return Buffer.from(xattrValue.subarray(0, size));
  const errno = errorNames.get(koffi.errno());
  if (errno === 'ENODATA') return undefined;
  if (errno === 'ENOTSUP' || errno === 'EOPNOTSUPP') return 'unsupported';
  throw new KeelsonError('SYSCALL_FAILED', `get ${name} of ${path}: ${errno}`, { details: { errno } });
}

/** syncfs(2) on the file system that holds `fd`, on a thread of the pool: it may take seconds. */
export function syncFilesystem(fd: number): Promise<void> {
  return new Promise((resolve, reject) => {
    c.syncfs.async(fd, (error: Error | null, result: number) => {
      if (error === null && result === 0) return resolve();
      // errno is not handed over from the pool thread, so the call cannot say which error it was.
      reject(new KeelsonError('SYSCALL_FAILED', 'syncfs failed', { cause: error ?? undefined }));
    });
  });
}

/** chroot(2). Affects only the calling thread where it has unshared `cloneFlags.FS` before. */
export function chroot(path: string): void {
  check(c.chroot(path), `chroot ${path}`);
}

/** fchdir(2). Affects only the calling thread where it has unshared `cloneFlags.FS` before. */
export function fchdir(fd: number): void {
  check(c.fchdir(fd), 'fchdir');
}

/** An exclusive flock(2) on `fd`, without waiting; false when somebody else holds it. */
export function tryLock(fd: number): boolean {
  const LOCK_EX = 2;
  const LOCK_NB = 4;
  if (c.flock(fd, LOCK_EX | LOCK_NB) === 0) return true;
  const name = errorNames.get(koffi.errno());
  if (name === 'EWOULDBLOCK' || name === 'EAGAIN') return false;
  throw new KeelsonError('SYSCALL_FAILED', `flock: ${name}`, { details: { errno: name } });
}

/**
 * Whether some process has the file of `fd` (opened for reading only) open for writing: it would be in the way of a read
 * lease, fcntl(2), which is given back at once. False where the file system knows no leases.
 */
export function hasWriter(fd: number): boolean {
  const F_SETSIG = 10;
  const F_SETLEASE = 1024;
  const [F_RDLCK, F_UNLCK] = [0, 2];
  const SIGURG = 23;
  // A process that comes to write in between makes the kernel send us a signal, of which the usual one would end us.
  if (c.fcntl(fd, F_SETSIG, SIGURG) === -1) return false;
  if (c.fcntl(fd, F_SETLEASE, F_RDLCK) === -1) {
    return ['EAGAIN', 'EWOULDBLOCK'].includes(errorNames.get(koffi.errno()) ?? '');
  }
  c.fcntl(fd, F_SETLEASE, F_UNLCK);
  return false;
}

/** utimensat(2) without following links, one time since the epoch for both. */
export function setTimes(path: SyscallPath, seconds: number, nanoseconds: number): void {
  const AT_SYMLINK_NOFOLLOW = 0x100;
  fillTimes(seconds, nanoseconds);
  check(c.utimensat(AT_FDCWD, terminated(path), timesAddress, AT_SYMLINK_NOFOLLOW), `set times of ${path}`);
}

/** futimens(2) with one time for both. */
export function setFileTimes(fd: number, seconds: number, nanoseconds: number): void {
  fillTimes(seconds, nanoseconds);
  check(c.futimens(fd, timesAddress), 'set times');
}

/** struct timespec[2], made once: a layer has tens of thousands of files. */
const times = new Float64Array(4);
const timesAsIntegers = new DataView(times.buffer);
const timesAddress = koffi.address(times);

function fillTimes(seconds: number, nanoseconds: number): void {
  const littleEndian = true;
  for (const at of [0, 16]) {
    timesAsIntegers.setUint32(at, seconds >>> 0, littleEndian);
    timesAsIntegers.setInt32(at + 4, Math.floor(seconds / 2 ** 32), littleEndian);
    timesAsIntegers.setUint32(at + 8, nanoseconds, littleEndian);
  }
}

/** fsetxattr(2). */
export function setFileXattr(fd: number, name: string, value: Buffer): void {
  check(c.fsetxattr(fd, name, value, value.length, 0), `set ${name}`);
}

export interface IsalInflate {
  readonly init: (state: bigint) => void;
  readonly reset: (state: bigint) => void;
  readonly inflate: (state: bigint) => number;
  /** Where the bytes are. They must stay referenced, and their buffer must not be moved, while it is used. */
  readonly addressOf: (bytes: Uint8Array) => bigint;
}

let isal: IsalInflate | undefined | null = null;

/** The inflate of ISA-L (libisal.so.2, igzip_lib.h); undefined where it is not installed. See igzip.ts. */
export function isalInflate(): IsalInflate | undefined {
  if (isal !== null) return isal;
  try {
    const library = koffi.load('libisal.so.2');
    isal = {
      init: library.func('void isal_inflate_init(uintptr_t state)'),
      reset: library.func('void isal_inflate_reset(uintptr_t state)'),
      inflate: library.func('int isal_inflate(uintptr_t state)'),
      addressOf: (bytes) => BigInt(koffi.address(bytes)),
    };
  } catch {
    isal = undefined;
  }
  return isal;
}

/** How many bytes of a pipe or fifo nobody has read yet (FIONREAD). */
export function unreadBytes(fd: number): number {
  const FIONREAD = 0x541b;
  const count = Buffer.alloc(4);
  check(c.ioctl(fd, FIONREAD, count), 'ask a pipe for its unread bytes');
  return count.readInt32LE(0);
}

/** Brings `name` up in the network namespace of the calling thread (netdevice(7), SIOCSIFFLAGS). */
export function linkUp(name: string): void {
  const AF_INET = 2;
  const SOCK_DGRAM_CLOEXEC = 2 | 0o2000000;
  const SIOCGIFFLAGS = 0x8913;
  const SIOCSIFFLAGS = 0x8914;
  const IFF_UP = 1;
  const fd = check(c.socket(AF_INET, SOCK_DGRAM_CLOEXEC, 0), 'socket');
  try {
    const request = Buffer.alloc(40);
    request.write(name, 0, 15, 'latin1');
    check(c.ioctl(fd, SIOCGIFFLAGS, request), `read flags of ${name}`);
    request.writeInt16LE(request.readInt16LE(16) | IFF_UP, 16);
    check(c.ioctl(fd, SIOCSIFFLAGS, request), `bring ${name} up`);
  } finally {
    c.close(fd);
  }
}

/** madvise(2) with MADV_DONTNEED: the pages are given back, and read from their file again when they are touched. */
export function dropPages(address: bigint, length: bigint): void {
  const MADV_DONTNEED = 4;
  check(c.madvise(address, length, MADV_DONTNEED), 'madvise');
}

/** malloc_trim(3): what the C heap holds free goes back to the system, in all its arenas. */
export function trimHeap(): void {
  c.mallocTrim(0);
}

/** A pipe, [read end, write end], both closed on exec. */
export function makePipe(): [number, number] {
  const O_CLOEXEC = 0o2000000;
  const ends = new Int32Array(2);
  check(c.pipe2(ends, O_CLOEXEC), 'pipe');
  return [ends[0]!, ends[1]!];
}

/** close(2); for descriptors that are not Node's. */
export function closeDescriptor(fd: number): void {
  c.close(fd);
}

/** A descriptor of ours, or the path of a file that is opened for reading. */
export type SpawnDescriptor = number | string;

/**
 * posix_spawnp(3): `program` by the PATH of this process, with `descriptors` as 0, 1, …, no signal blocked and none
 * ignored. Returns the pid; the caller reaps it.
 */
export function spawnProcess(
  program: string,
  argv: readonly string[],
  options: {
    readonly env: readonly string[];
    readonly cwd?: string;
    readonly descriptors: readonly SpawnDescriptor[];
    /** A session of its own (setsid). */
    readonly session: boolean;
  },
): number {
  const SETSIGDEF = 0x04;
  const SETSIGMASK = 0x08;
  const SETSID = 0x80;
  // posix_spawnattr_t has 336 bytes and posix_spawn_file_actions_t 80 in glibc; musl's are smaller.
  const attributes = Buffer.alloc(1024);
  const actions = Buffer.alloc(512);
  c.posix_spawnattr_init(attributes);
  c.posix_spawn_file_actions_init(actions);
  try {
    const signals = Buffer.alloc(128);
    c.posix_spawnattr_setsigmask(attributes, signals);
    c.posix_spawnattr_setsigdefault(attributes, signals.fill(0xff));
    c.posix_spawnattr_setflags(attributes, SETSIGDEF | SETSIGMASK | (options.session ? SETSID : 0));
    options.descriptors.forEach((from, to) => {
      if (typeof from === 'number') c.posix_spawn_file_actions_adddup2(actions, from, to);
      else c.posix_spawn_file_actions_addopen(actions, to, from, 0, 0);
    });
    if (options.cwd !== undefined) c.posix_spawn_file_actions_addchdir_np(actions, options.cwd);
    const pid = [0];
    const errno = c.posix_spawnp(pid, program, actions, attributes, [...argv, null], [...options.env, null]);
    if (errno === 0) return pid[0]!;
    const name = errorNames.get(errno) ?? `errno ${errno}`;
    throw new KeelsonError('SYSCALL_FAILED', `start ${program}: ${name}`, { details: { errno: name } });
  } finally {
    c.posix_spawn_file_actions_destroy(actions);
    c.posix_spawnattr_destroy(attributes);
  }
}

/** waitpid(2) without waiting: the wait status of an ended child, undefined while it runs. */
export function reap(pid: number): number | undefined {
  const WNOHANG = 1;
  const status = [0];
  const result = c.waitpid(pid, status, WNOHANG);
  if (result === 0) return undefined;
  return check(result, `wait for ${pid}`) === pid ? status[0] : undefined;
}

const SOCK_STREAM = 1;
const SOCK_SEQPACKET = 5;
const SOCK_NONBLOCK = 0o4000;
const SOCK_CLOEXEC = 0o2000000;
const AF_UNIX = 1;
const AF_INET = 2;
const AF_INET6 = 10;

/**
 * connect(2) to a socket of packets (SOCK_SEQPACKET) at `path`, of at most 107 bytes: [descriptor, stand-in]. Node opens
 * sockets by descriptor only where they are streams, so the stand-in, a stream socket, is opened instead and
 * `replaceDescriptor` puts the packets under it. Neither blocks. Throws SYSCALL_FAILED with `details.errno`.
 */
export function connectPackets(path: string): [number, number] {
  const address = Buffer.alloc(110);
  address.writeUInt16LE(AF_UNIX, 0);
  if (address.write(path, 2, 108, 'utf8') !== Buffer.byteLength(path)) {
    throw new KeelsonError('SYSCALL_FAILED', `connect to ${path}: ENAMETOOLONG`, {
      details: { errno: 'ENAMETOOLONG' },
    });
  }
  const fd = check(c.socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');
  try {
    check(c.connect(fd, address, address.length), `connect to ${path}`);
    const ends = new Int32Array(2);
    check(c.socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ends), 'socketpair');
    c.close(ends[1]!);
    return [fd, ends[0]!];
  } catch (error) {
    c.close(fd);
    throw error;
  }
}

/** dup3(2): `to` becomes what `from` is; `from` is closed. */
export function replaceDescriptor(from: number, to: number): void {
  const O_CLOEXEC = 0o2000000;
  try {
    check(c.dup3(from, to, O_CLOEXEC), 'dup3');
  } finally {
    c.close(from);
  }
}

/** A TCP socket in the network namespace of the calling thread, where it stays whatever the thread does later. */
export function tcpSocket(family: 4 | 6): number {
  const domain = family === 4 ? AF_INET : AF_INET6;
  return check(c.socket(domain, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), 'socket');
}

/** connect(2) to the loopback address, without waiting: true when it is made. Throws SYSCALL_FAILED with `details.errno`. */
export function connectLoopback(fd: number, family: 4 | 6, port: number): boolean {
  const address = Buffer.alloc(family === 4 ? 16 : 28);
  address.writeUInt16LE(family === 4 ? AF_INET : AF_INET6, 0);
  address.writeUInt16BE(port, 2);
  if (family === 4) address.writeUInt32BE(0x7f000001, 4);
  else address[23] = 1;
  if (c.connect(fd, address, address.length) === 0) return true;
  const name = errorNames.get(koffi.errno()) ?? 'failed';
  if (name === 'EISCONN') return true;
  if (name === 'EINPROGRESS' || name === 'EALREADY') return false;
  throw new KeelsonError('SYSCALL_FAILED', `connect to port ${port}: ${name}`, { details: { errno: name } });
}
