/* The queue of a disk's thread: appends are written, synced and answered without the interpreter.

   `twisted_paxos.storage.executor.NativeDiskThread` is its only user, and says what it is for. One thread,
   of Python's, calls `take` in a loop; the reactor's thread does the rest. `take` returns with work for
   Python only; an append it runs itself, without the interpreter's lock: write all, sync, and only after
   both went well send the datagram that reports it. A failed append is never tried again, and no append
   behind it is run: each comes out of `take` with the same error.

   All memory of Python's is taken and let go with the interpreter's lock held. */

#define _GNU_SOURCE /* for affinity */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SLICE_NS 100000
#define CORES_BYTES 1024 /* of a mask: 8,192 cores */

typedef struct Job {
    struct Job *next;
    PyObject *token;  /* whose it is: goes out again as it came in */
    int is_append;
    int fd;
    off_t offset;
    Py_buffer data;
    int socket;  /* a copy of the caller's, which may be closed meanwhile; -1: nothing is sent */
    struct sockaddr_storage address;
    socklen_t address_bytes;
    Py_buffer datagram;
    Py_buffer withdrawn;  /* one byte: not zero once the datagram must not leave any more */
    int refused;  /* errno of the sending, 0 when it went well */
} Job;

typedef struct {
    Job *first, **end;
} Jobs;

typedef struct {
    PyObject_HEAD
    pthread_mutex_t lock;  /* never held while the interpreter's lock is waited for */
    pthread_cond_t filled;
    Jobs waiting, ended;
    int wake_fd;
    int begun, failed; /* errno of the append that failed; both are the taking thread's own */
    pid_t taker; /* the taking thread, once it has short time slices */
    int taker_cpu; /* where it must run; -1: wherever it was told to by others */
    unsigned long taker_cores[CORES_BYTES / sizeof(unsigned long)]; /* those */
} DiskQueue;

static void clear(Jobs *jobs)
{
    jobs->first = NULL;
    jobs->end = &jobs->first;
}

static void push(Jobs *jobs, Job *job)
{
    job->next = NULL;
    *jobs->end = job;
    jobs->end = &job->next;
}

static Job *pop(Jobs *jobs)
{
    Job *job = jobs->first;
    jobs->first = job->next;
    if (!jobs->first)
        jobs->end = &jobs->first;
    return job;
}

static Job *new_job(PyObject *token)
{
    Job *job = PyMem_Calloc(1, sizeof(Job));
    if (!job) {
        PyErr_NoMemory();
        return NULL;
    }
    job->socket = -1;
    job->token = Py_NewRef(token);
    return job;
}

static void free_job(Job *job)
{
    if (job->socket >= 0)
        close(job->socket);
    /* What was never filled is zero, and let go without effect. */
    PyBuffer_Release(&job->data);
    PyBuffer_Release(&job->datagram);
    PyBuffer_Release(&job->withdrawn);
    Py_DECREF(job->token);
    PyMem_Free(job);
}

static void free_jobs(Jobs *jobs)
{
    while (jobs->first)
        free_job(pop(jobs));
}

/* -- without the interpreter's lock */

static int write_and_sync(const Job *job)
{
    const char *data = job->data.buf;
    Py_ssize_t left = job->data.len;
    off_t offset = job->offset;
    while (left) {
        ssize_t written = pwrite(job->fd, data, left, offset);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            return written < 0 ? errno : EIO;
        data += written;
        offset += written;
        left -= written;
    }
#ifdef __APPLE__
    return fcntl(job->fd, F_FULLFSYNC) < 0 ? errno : 0;
#else
    return fdatasync(job->fd) < 0 ? errno : 0;
#endif
}

static void send_datagram(Job *job)
{
    if (job->socket < 0)
        return;
    if (!*(volatile const char *)job->withdrawn.buf
        && sendto(job->socket, job->datagram.buf, job->datagram.len, 0, (struct sockaddr *)&job->address,
                  job->address_bytes) < 0)
        job->refused = errno;
    close(job->socket);
    job->socket = -1;
}

static void give_back(DiskQueue *self, Job *job)
{
    uint64_t one = 1;
    pthread_mutex_lock(&self->lock);
    int first = !self->ended.first;
    push(&self->ended, job);
    pthread_mutex_unlock(&self->lock);
    /* Without the lock: whoever wakes wants it at once. */
    if (first && write(self->wake_fd, &one, sizeof one) < 0)
        return; /* It is full, so it wakes as well. */
}

/* Its work is short and somebody waits for it: ask to run as soon as it wakes, beside whatever else runs on
   that core. Linux 6.12 or later; elsewhere, and where somebody chose another policy, all stays as it is.
   Returns whether it was granted. */
static int ask_for_short_slices(void)
{
#ifdef SYS_sched_setattr
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime_ns, deadline_ns, period_ns;
    } wanted = {0};
    if (syscall(SYS_sched_getattr, 0, &wanted, sizeof wanted, 0) < 0 || wanted.policy != SCHED_OTHER)
        return 0;
    wanted.runtime_ns = SLICE_NS;
    return syscall(SYS_sched_setattr, 0, &wanted, 0) == 0
           && syscall(SYS_sched_getattr, 0, &wanted, sizeof wanted, 0) == 0 && wanted.runtime_ns == SLICE_NS;
#else
    return 0;
#endif
}

static void begin(DiskQueue *self)
{
#ifdef __linux__
    pid_t taker = ask_for_short_slices() ? (pid_t)syscall(SYS_gettid) : 0;
    pthread_mutex_lock(&self->lock);
    self->taker = taker;
    pthread_mutex_unlock(&self->lock);
#endif
}

static Job *next_for_python(DiskQueue *self)
{
    if (!self->begun) {
        self->begun = 1;
        begin(self);
    }
    for (;;) {
        pthread_mutex_lock(&self->lock);
        while (!self->waiting.first)
            pthread_cond_wait(&self->filled, &self->lock);
        Job *job = pop(&self->waiting);
        pthread_mutex_unlock(&self->lock);
        if (!job->is_append)
            return job;
        if (!self->failed)
            self->failed = write_and_sync(job);
        if (self->failed)
            return job;
        send_datagram(job);
        give_back(self, job);
    }
}

/* -- with it */

/* An append that sends nothing is a leader's own, and other nodes' votes are waited for at the same time: it
   goes beside the rest of this thread's turn, on this thread's core. On another one it would stand in the way
   of a node that is to vote, where nodes share a machine, and that core would have to wake up. All else may run
   wherever it might before. */
static void place(DiskQueue *self, const Job *job)
{
#ifdef __linux__
    unsigned long one[CORES_BYTES / sizeof(unsigned long)] = {0};
    cpu_set_t *cores = (cpu_set_t *)self->taker_cores;
    int cpu = job->is_append && job->socket < 0 ? sched_getcpu() : -1;
    if (self->taker && cpu >= 0) {
        if (self->taker_cpu < 0 && sched_getaffinity(self->taker, CORES_BYTES, cores) < 0)
            return;
        if (!CPU_ISSET_S(cpu, CORES_BYTES, cores))
            cpu = -1;
    }
    if (self->taker && cpu != self->taker_cpu) {
        if (cpu >= 0) {
            cores = (cpu_set_t *)one;
            CPU_SET_S(cpu, CORES_BYTES, cores);
        }
        if (sched_setaffinity(self->taker, CORES_BYTES, cores) == 0)
            self->taker_cpu = cpu;
    }
    if (job->token == Py_None)
        self->taker = 0; /* The last job: the number may be another thread's soon. */
#endif
}

static void give(DiskQueue *self, Job *job)
{
    pthread_mutex_lock(&self->lock);
    place(self, job);
    push(&self->waiting, job);
    pthread_mutex_unlock(&self->lock);
    pthread_cond_signal(&self->filled); /* without the lock: whoever wakes wants it at once */
}

static int read_address(Job *job, const char *host, int port)
{
    struct sockaddr_in *four = (struct sockaddr_in *)&job->address;
    struct sockaddr_in6 *six = (struct sockaddr_in6 *)&job->address;
    if (inet_pton(AF_INET, host, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons((uint16_t)port);
        job->address_bytes = sizeof *four;
        return 0;
    }
    if (inet_pton(AF_INET6, host, &six->sin6_addr) == 1) {
        six->sin6_family = AF_INET6;
        six->sin6_port = htons((uint16_t)port);
        job->address_bytes = sizeof *six;
        return 0;
    }
    PyErr_Format(PyExc_ValueError, "%s is no IP address", host);
    return -1;
}

static int read_datagram(Job *job, PyObject *datagram)
{
    int socket, port;
    const char *host;
    if (datagram == Py_None)
        return 0;
    if (!PyTuple_Check(datagram)) {
        PyErr_SetString(PyExc_TypeError, "a datagram is a tuple");
        return -1;
    }
    if (!PyArg_ParseTuple(datagram, "isiy*y*", &socket, &host, &port, &job->datagram, &job->withdrawn))
        return -1;
    if (job->withdrawn.len != 1) {
        PyErr_SetString(PyExc_ValueError, "one byte says whether a datagram is withdrawn");
        return -1;
    }
    if (read_address(job, host, port) < 0)
        return -1;
    job->socket = fcntl(socket, F_DUPFD_CLOEXEC, 0);
    if (job->socket < 0) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    return 0;
}

static PyObject *DiskQueue_append(DiskQueue *self, PyObject *args)
{
    PyObject *token, *datagram;
    int fd;
    long long offset;
    Py_buffer data;
    if (!PyArg_ParseTuple(args, "OiLy*O", &token, &fd, &offset, &data, &datagram))
        return NULL;
    Job *job = new_job(token);
    if (!job) {
        PyBuffer_Release(&data);
        return NULL;
    }
    job->is_append = 1;
    job->fd = fd;
    job->offset = (off_t)offset;
    job->data = data;
    if (read_datagram(job, datagram) < 0) {
        free_job(job);
        return NULL;
    }
    give(self, job);
    Py_RETURN_NONE;
}

static PyObject *DiskQueue_put(DiskQueue *self, PyObject *token)
{
    Job *job = new_job(token);
    if (!job)
        return NULL;
    give(self, job);
    Py_RETURN_NONE;
}

static PyObject *DiskQueue_take(DiskQueue *self, PyObject *Py_UNUSED(none))
{
    Job *job;
    Py_BEGIN_ALLOW_THREADS
    job = next_for_python(self);
    Py_END_ALLOW_THREADS
    PyObject *taken = Py_BuildValue("(Oi)", job->token, job->is_append ? self->failed : 0);
    free_job(job);
    return taken;
}

static PyObject *DiskQueue_finish(DiskQueue *self, PyObject *outcome)
{
    Job *job = new_job(outcome);
    if (!job)
        return NULL;
    give_back(self, job);
    Py_RETURN_NONE;
}

static PyObject *DiskQueue_ended(DiskQueue *self, PyObject *Py_UNUSED(none))
{
    PyObject *list = PyList_New(0);
    if (!list)
        return NULL;
    pthread_mutex_lock(&self->lock);
    Jobs ended = self->ended;
    if (!ended.first)
        clear(&ended);
    clear(&self->ended);
    pthread_mutex_unlock(&self->lock);
    while (ended.first) {
        Job *job = pop(&ended);
        PyObject *pair = Py_BuildValue("(Oi)", job->token, job->is_append ? job->refused : -1);
        int failed = !pair || PyList_Append(list, pair) < 0;
        Py_XDECREF(pair);
        free_job(job);
        if (failed) {
            free_jobs(&ended);
            Py_DECREF(list);
            return NULL;
        }
    }
    return list;
}

static PyObject *DiskQueue_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"wake_fd", NULL};
    int wake_fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i", names, &wake_fd))
        return NULL;
    DiskQueue *self = (DiskQueue *)type->tp_alloc(type, 0);
    if (!self)
        return NULL;
    pthread_mutex_init(&self->lock, NULL);
    pthread_cond_init(&self->filled, NULL);
    clear(&self->waiting);
    clear(&self->ended);
    self->wake_fd = wake_fd;
    self->taker_cpu = -1;
    return (PyObject *)self;
}

static void DiskQueue_dealloc(DiskQueue *self)
{
    free_jobs(&self->waiting);
    free_jobs(&self->ended);
    pthread_cond_destroy(&self->filled);
    pthread_mutex_destroy(&self->lock);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static PyMethodDef DiskQueue_methods[] = {
    {"append", (PyCFunction)DiskQueue_append, METH_VARARGS,
     "append(token, fd, offset, data, datagram): give an append; datagram is (socket, host, port, data,\n"
     "withdrawn) or None."},
    {"put", (PyCFunction)DiskQueue_put, METH_O, "put(token): give work for Python."},
    {"take", (PyCFunction)DiskQueue_take, METH_NOARGS,
     "take() -> (token, 0) of work for Python, or (token, errno) of an append that failed."},
    {"finish", (PyCFunction)DiskQueue_finish, METH_O, "finish(outcome): what Python made of what it took."},
    {"ended", (PyCFunction)DiskQueue_ended, METH_NOARGS,
     "ended() -> list of (token, errno of the sending) and (outcome, -1), in order."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject DiskQueueType = {
    PyVarObject_HEAD_INIT(NULL, 0)
    .tp_name = "twisted_paxos.storage._diskqueue.DiskQueue",
    .tp_basicsize = sizeof(DiskQueue),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_doc = "The queue of one disk's thread; wake_fd is written to when something ended.",
    .tp_new = DiskQueue_new,
    .tp_dealloc = (destructor)DiskQueue_dealloc,
    .tp_methods = DiskQueue_methods,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_diskqueue",
    .m_doc = "Appends to a log without the interpreter.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit__diskqueue(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && (PyModule_AddType(made, &DiskQueueType) < 0 || PyModule_AddIntConstant(made, "VERSION", 1) < 0))
        Py_CLEAR(made);
    return made;
}
