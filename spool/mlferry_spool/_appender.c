/* The hot path of ``mlferry_spool.appender``, compiled: what that module does in Python, in one call.
 *
 * Owns no rule of its own. A frame of up to SMALL bytes of payload is built on the stack, under the writer's lock, and given
 * to one write(2) with the GIL released. Whatever is not as it nearly always is goes to the methods of the same names in
 * Python, which decide: a larger payload, other files than the system's, a value or a step that is not plain.
 *
 * Signals. No handler runs in here but where it is said to (EINTR), since CPython executes them between bytecodes. So nothing
 * comes between the counters and the write. A write that was interrupted before its first byte is uncounted, the handlers run,
 * and the frame is built again: they may have logged.
 *
 * The stable ABI of CPython 3.10 is all that is used, so one build serves every later version.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030A0000
#include <Python.h>
#include <structmember.h>

#include <errno.h>
#include <stddef.h>
#include <time.h>
#include <unistd.h>

#include "_frame.h"

enum { METRICS = 4 };

/* -- the appender -------------------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    int fd;
    unsigned int salt;
    long long sequence, position, act_at;
    PyObject *acquire, *release, *pack, *write;
} Appender;

static PyObject *os_write;

/* What Python's writer does about a failed (``written`` < 0) or short write; True or False. */
static PyObject *
recover(Appender *self, int kind, Frame *frame, long long sequence, unsigned int salt, ssize_t written)
{
    int error = errno;
    PyObject *failure = written < 0 ? PyObject_CallFunction(PyExc_OSError, "is", error, strerror(error))
                                    : PyLong_FromSsize_t(written);
    if (failure == NULL) {
        return NULL;
    }
    PyObject *kept = PyObject_CallMethod((PyObject *)self, "_recover", "iy#(LI)O", kind, payload_of(frame),
                                         (Py_ssize_t)frame->size, sequence, salt, failure);
    Py_DECREF(failure);
    return kept;
}

/* Write a frame; the lock is held. True: it is kept. False: it was counted. */
static PyObject *
write_frame(Appender *self, int kind, Frame *frame)
{
    ssize_t size = (ssize_t)frame->size + OVERHEAD, written;
    for (;;) {
        long long sequence = self->sequence++, position = self->position += size;
        unsigned int salt = self->salt;
        int fd = self->fd;
        seal(frame, kind, (uint32_t)sequence, salt);
        Py_BEGIN_ALLOW_THREADS
        written = write(fd, frame->bytes, (size_t)size);
        Py_END_ALLOW_THREADS
        if (written == size) {
            return position < self->act_at ? PyBool_FromLong(1) : PyObject_CallMethod((PyObject *)self, "_act", NULL);
        }
        if (written >= 0 || errno != EINTR) {
            return recover(self, kind, frame, sequence, salt, written);
        }
        self->sequence--;
        self->position -= size;
        if (PyErr_CheckSignals() < 0) {
            return NULL;
        }
    }
}

/* Give a lock back, whatever has happened meanwhile; ``result`` is what the call returns. */
static PyObject *
released(PyObject *release, PyObject *result)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *done = PyObject_CallNoArgs(release);
    if (done == NULL && PyErr_ExceptionMatches(PyExc_RuntimeError)) {
        PyErr_Clear(); /* a signal handler has forked: in the child, the lock is another one */
    }
    else if (done == NULL) {
        Py_CLEAR(result);
    }
    Py_XDECREF(done);
    Py_DECREF(release);
    if (!PyErr_Occurred()) {
        PyErr_Restore(type, value, traceback);
    }
    else {
        Py_XDECREF(type);
        Py_XDECREF(value);
        Py_XDECREF(traceback);
    }
    return result;
}

/* Take the lock. The function that gives it back, to be handed to ``released``; or NULL. */
static PyObject *
acquired(Appender *self)
{
    if (self->acquire == NULL || self->release == NULL) {
        PyErr_SetString(PyExc_AttributeError, "the appender has no lock");
        return NULL;
    }
    PyObject *release = Py_NewRef(self->release);
    PyObject *held = PyObject_CallNoArgs(self->acquire);
    if (held == NULL) {
        Py_DECREF(release);
        return NULL;
    }
    Py_DECREF(held);
    return release;
}

static PyObject *
write_locked(Appender *self, int kind, Frame *frame)
{
    PyObject *release = acquired(self);
    return release == NULL ? NULL : released(release, write_frame(self, kind, frame));
}

/* Whether frames may be written here: not to files that are not the system's, which a test may let fail. */
static int
is_plain(Appender *self)
{
    return self->write == os_write;
}

/* -- append -------------------------------------------------------------------------------------------------------------- */

/* What msgpack packs for ``fields``; NULL without an exception where Python's method shall say what is wrong. The packer is
 * not thread-safe, so the lock is held. */
static PyObject *
packed(Appender *self, PyObject *fields)
{
    if (PyBytes_CheckExact(fields) || self->pack == NULL) {
        return Py_NewRef(fields);
    }
    PyObject *payload = PyObject_CallFunctionObjArgs(self->pack, fields, NULL);
    if (payload == NULL && PyErr_ExceptionMatches(PyExc_Exception)) {
        PyErr_Clear();
    }
    return payload;
}

/* Copy a payload to where its frame will be; whether it fits. */
static int
is_taken(Frame *frame, PyObject *payload)
{
    char *bytes;
    Py_ssize_t size;
    if (!PyBytes_CheckExact(payload) || PyBytes_AsStringAndSize(payload, &bytes, &size) < 0 || size > SMALL) {
        return 0;
    }
    memcpy(payload_of(frame), bytes, (size_t)size);
    frame->size = (size_t)size;
    return 1;
}

static PyObject *
append_locked(Appender *self, PyObject *kind, PyObject *fields)
{
    Frame frame;
    PyObject *payload = packed(self, fields);
    if (payload == NULL && PyErr_Occurred()) {
        return NULL;
    }
    long number = PyLong_AsLong(kind);
    if (payload != NULL && number > 0 && number < 0x80 && is_plain(self) && is_taken(&frame, payload)) {
        Py_DECREF(payload);
        return write_frame(self, (int)number, &frame);
    }
    PyErr_Clear();
    PyObject *kept = PyObject_CallMethod((PyObject *)self, "_append", "OO", kind, payload == NULL ? fields : payload);
    Py_XDECREF(payload);
    return kept;
}

static PyObject *
append(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    Appender *self = (Appender *)object;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "append(kind, fields)");
        return NULL;
    }
    PyObject *release = acquired(self);
    return release == NULL ? NULL : released(release, append_locked(self, arguments[0], arguments[1]));
}

/* -- points of metrics --------------------------------------------------------------------------------------------------- */

/* Forget an exception that says no more than that something is not plain. NULL, or None. */
static PyObject *
not_plain(void)
{
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_Exception)) {
            return NULL;
        }
        PyErr_Clear();
    }
    Py_RETURN_NONE;
}

/* ``[now, step, {``: where the points begin; NULL where ``step`` is neither None nor a plain int64. */
static unsigned char *
begin_metrics(Frame *frame, PyObject *step)
{
    long long number = 0;
    if (step != Py_None) {
        if (!PyLong_CheckExact(step)) {
            return NULL;
        }
        number = PyLong_AsLongLong(step);
        if (number == -1 && PyErr_Occurred()) {
            return NULL;
        }
    }
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned char *at = payload_of(frame);
    *at++ = 0x93;
    *at++ = 0xCF;
    at = put64(at, (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000);
    *at++ = 0xD3;
    return put64(at, (uint64_t)number);
}

/* A plain number's float64; whether it is one. */
static int
is_number(PyObject *types, PyObject *value, double *number)
{
    if (!PyFloat_CheckExact(value) && PySet_Contains(types, (PyObject *)Py_TYPE(value)) != 1) {
        return 0;
    }
    *number = PyFloat_AsDouble(value);
    return *number != -1.0 || !PyErr_Occurred();
}

/* As ``is_number``, for those that can be asked without running code in Python, which could change what is walked. */
static int
is_simple_number(PyObject *types, PyObject *value, double *number)
{
    int is_own = PyFloat_CheckExact(value) || PyLong_CheckExact(value) || PyBool_Check(value);
    int is_float = PyFloat_Check(value) && Py_IS_TYPE((PyObject *)Py_TYPE(value), &PyType_Type);
    return (is_own || is_float) && is_number(types, value, number);
}

/* What stands before the number of a known name, in a map of one; NULL where the name is not known. */
static char *
name_of(PyObject *templates, PyObject *key, Py_ssize_t *size)
{
    PyObject *known = PyDict_GetItemWithError(templates, key);
    PyObject *name = known == NULL ? NULL : PyTuple_GetItem(known, 1);
    char *bytes;
    return name == NULL || PyBytes_AsStringAndSize(name, &bytes, size) < 0 ? NULL : bytes;
}

static PyObject *
append_point(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    Appender *self = (Appender *)object;
    if (count != 5) {
        PyErr_SetString(PyExc_TypeError, "append_point(templates, types, key, value, step)");
        return NULL;
    }
    PyObject *templates = arguments[0], *types = arguments[1], *key = arguments[2], *value = arguments[3];
    Frame frame;
    double number;
    Py_ssize_t size;
    if (!is_number(types, value, &number)) {
        return not_plain();
    }
    unsigned char *at = begin_metrics(&frame, arguments[4]);
    char *name = at == NULL ? NULL : name_of(templates, key, &size);
    if (name == NULL) {
        return not_plain();
    }
    if (!is_plain(self) || size > SMALL / 2) {
        return PyObject_CallMethod(object, "_append_point", "OOOOO", templates, types, key, value, arguments[4]);
    }
    memcpy(at, name, (size_t)size);
    at = put_double(at + size, number);
    frame.size = (size_t)(at - payload_of(&frame));
    return write_locked(self, METRICS, &frame);
}

/* The points of a dictionary, after its header; 1: all of them, 0: there is not room for them, -1: not all are plain. */
static int
put_points(unsigned char **to, const unsigned char *end, PyObject *templates, PyObject *types, PyObject *metrics)
{
    Py_ssize_t at = 0, size;
    PyObject *key, *value;
    double number;
    while (PyDict_Next(metrics, &at, &key, &value)) {
        int is_simple = PyUnicode_CheckExact(key) && is_simple_number(types, value, &number);
        char *name = is_simple ? name_of(templates, key, &size) : NULL;
        if (name == NULL) {
            return -1;
        }
        size--; /* without the header of a map of one */
        if (end - *to < size + 8) {
            return 0;
        }
        memcpy(*to, name + 1, (size_t)size);
        *to = put_double(*to + size, number);
    }
    return 1;
}

static PyObject *
append_points(PyObject *object, PyObject *const *arguments, Py_ssize_t count)
{
    Appender *self = (Appender *)object;
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "append_points(templates, types, metrics, step)");
        return NULL;
    }
    PyObject *templates = arguments[0], *types = arguments[1], *metrics = arguments[2], *step = arguments[3];
    Frame frame;
    int fits = 0;
    if (PyDict_CheckExact(metrics) && is_plain(self)) {
        Py_ssize_t many = PyDict_Size(metrics);
        unsigned char *at = many == 0 ? NULL : begin_metrics(&frame, step);
        if (at == NULL) {
            return not_plain();
        }
        *at++ = 0xDE;
        *at++ = (unsigned char)(many >> 8);
        *at++ = (unsigned char)many;
        fits = put_points(&at, frame.bytes + sizeof frame.bytes, templates, types, metrics);
        if (fits < 0) {
            return not_plain();
        }
        frame.size = (size_t)(at - payload_of(&frame));
    }
    if (!fits) {
        return PyObject_CallMethod(object, "_append_points", "OOOO", templates, types, metrics, step);
    }
    return write_locked(self, METRICS, &frame);
}

/* -- the type ------------------------------------------------------------------------------------------------------------ */

static int
traverse(PyObject *object, visitproc visit, void *arg)
{
    Appender *self = (Appender *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->acquire);
    Py_VISIT(self->release);
    Py_VISIT(self->pack);
    Py_VISIT(self->write);
    return 0;
}

static int
clear(PyObject *object)
{
    Appender *self = (Appender *)object;
    Py_CLEAR(self->acquire);
    Py_CLEAR(self->release);
    Py_CLEAR(self->pack);
    Py_CLEAR(self->write);
    return 0;
}

static void
deallocate(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    clear(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyMemberDef members[] = {
    {"_fd", T_INT, offsetof(Appender, fd), 0, NULL},
    {"_salt", T_UINT, offsetof(Appender, salt), 0, NULL},
    {"_sequence", T_LONGLONG, offsetof(Appender, sequence), 0, NULL},
    {"_position", T_LONGLONG, offsetof(Appender, position), 0, NULL},
    {"_act_at", T_LONGLONG, offsetof(Appender, act_at), 0, NULL},
    {"_acquire", T_OBJECT_EX, offsetof(Appender, acquire), 0, NULL},
    {"_release", T_OBJECT_EX, offsetof(Appender, release), 0, NULL},
    {"_pack", T_OBJECT_EX, offsetof(Appender, pack), 0, NULL},
    {"_write", T_OBJECT_EX, offsetof(Appender, write), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyMethodDef methods[] = {
    {"append", (PyCFunction)(void (*)(void))append, METH_FASTCALL, "As ``PythonAppender.append``."},
    {"append_point", (PyCFunction)(void (*)(void))append_point, METH_FASTCALL, "As ``PythonAppender.append_point``."},
    {"append_points", (PyCFunction)(void (*)(void))append_points, METH_FASTCALL, "As ``PythonAppender.append_points``."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "The counters of an open segment, and what writes frames to it."},
    {Py_tp_members, members},
    {Py_tp_methods, methods},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_dealloc, deallocate},
    {0, NULL},
};

static PyType_Spec specification = {
    .name = "mlferry_spool._appender.Appender",
    .basicsize = sizeof(Appender),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE | Py_TPFLAGS_HAVE_GC,
    .slots = slots,
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "mlferry_spool._appender",
    .m_size = -1,
};

PyMODINIT_FUNC
PyInit__appender(void)
{
    fill_crc_table();
    PyObject *os = PyImport_ImportModule("os");
    os_write = os == NULL ? NULL : PyObject_GetAttrString(os, "write");
    Py_XDECREF(os);
    PyObject *type = os_write == NULL ? NULL : PyType_FromSpec(&specification);
    PyObject *made = type == NULL ? NULL : PyModule_Create(&module);
    if (made != NULL && PyModule_AddObjectRef(made, "Appender", type) < 0) {
        Py_CLEAR(made);
    }
    Py_XDECREF(type);
    return made;
}
