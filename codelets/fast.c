/* A hook as the application calls it, and a codelet's call, in C: what calling.py does, with the same results.
 *
 * It is linked with nothing of wasmtime's: the addresses of two functions of the wheel's library are given to it.
 * Everything here runs with the interpreter's lock. What is rare (a fault, a set with helpers) is done in Python.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

#define BUCKETS 48 /* calling.BUCKETS */
#define MAX_ARGUMENTS 3

typedef struct {
    uint64_t low, high;
} raw_value; /* wasmtime_val_raw_t: 16 bytes, the number in the first of them */

typedef void *(*call_function)(void *store, const void *function, raw_value *values, size_t count, void **trap);
typedef void *(*fuel_function)(void *store, uint64_t fuel);

typedef struct {
    PyObject_HEAD
    call_function call;
    fuel_function set_fuel;
    void *store;
    const void **function; /* where the address of the entry's wasmtime_func_t is: another after each fault */
    char *region, *data_region;
    uint64_t region_at, data_at, fuel, calls, threshold, mask;
    Py_ssize_t size, most;
    int writable;
    uint64_t times[BUCKETS + 1];
    PyObject *kept;    /* what the addresses point into */
    PyObject *before;  /* called before each call, or NULL */
    PyObject *ended;   /* ended(error, trap) */
    PyObject *overran; /* overran(nanoseconds) */
} Call;

static int call_traverse(Call *self, visitproc visit, void *arg)
{
    Py_VISIT(self->kept);
    Py_VISIT(self->before);
    Py_VISIT(self->ended);
    Py_VISIT(self->overran);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int call_clear(Call *self)
{
    Py_CLEAR(self->kept);
    Py_CLEAR(self->before);
    Py_CLEAR(self->ended);
    Py_CLEAR(self->overran);
    return 0;
}

static void call_dealloc(Call *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    call_clear(self);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *call_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"call", "set_fuel", "store", "function", "region", "region_at", "size", "data_region",
                            "data_at", "most", "fuel", "writable", "threshold", "mask", "kept", "before", "ended",
                            "overran", NULL};
    unsigned long long call, set_fuel, store, function, region, region_at, data_region, data_at, fuel, threshold, mask;
    Py_ssize_t size, most;
    int writable;
    PyObject *kept, *before, *ended, *overran;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "$KKKKKKnKKnKpKKOOOO", names, &call, &set_fuel, &store, &function,
                                     &region, &region_at, &size, &data_region, &data_at, &most, &fuel, &writable,
                                     &threshold, &mask, &kept, &before, &ended, &overran))
        return NULL;
    Call *self = (Call *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = (call_function)(uintptr_t)call;
    self->set_fuel = (fuel_function)(uintptr_t)set_fuel;
    self->store = (void *)(uintptr_t)store;
    self->function = (const void **)(uintptr_t)function;
    self->region = (char *)(uintptr_t)region;
    self->data_region = (char *)(uintptr_t)data_region;
    self->region_at = region_at, self->data_at = data_at, self->fuel = fuel;
    self->size = size, self->most = most, self->writable = writable;
    self->threshold = threshold, self->mask = mask;
    self->kept = Py_NewRef(kept), self->ended = Py_NewRef(ended), self->overran = Py_NewRef(overran);
    self->before = before == Py_None ? NULL : Py_NewRef(before);
    return (PyObject *)self;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* 1: *result is the codelet's; 0: it had a fault; -1: an exception is set. */
static int call_run(Call *self, Py_buffer *context, Py_buffer *data, int64_t *result)
{
    raw_value values[MAX_ARGUMENTS] = {{self->region_at, 0}, {self->data_at, 0}, {0, 0}};
    size_t count = 1;
    void *trap = NULL, *error;
    if (context->len != self->size) {
        PyErr_Format(PyExc_ValueError, "the context has %zd bytes and not %zd", context->len, self->size);
        return -1;
    }
    memcpy(self->region, context->buf, (size_t)self->size);
    if (self->most) {
        Py_ssize_t length = data ? data->len : 0;
        if (length > self->most) {
            PyErr_Format(PyExc_ValueError, "the data has %zd bytes of at most %zd", length, self->most);
            return -1;
        }
        if (length)
            memcpy(self->data_region, data->buf, (size_t)length);
        values[2].low = (uint64_t)length;
        count = 3;
    }
    if (self->before) {
        PyObject *done = PyObject_CallNoArgs(self->before);
        if (done == NULL)
            return -1;
        Py_DECREF(done);
    }
    self->set_fuel(self->store, self->fuel);
    if (self->calls++ & self->mask) {
        error = self->call(self->store, *self->function, values, count, &trap);
    } else {
        uint64_t begin = now(), taken;
        error = self->call(self->store, *self->function, values, count, &trap);
        taken = now() - begin;
        int bits = taken ? 64 - __builtin_clzll(taken) : 0;
        self->times[bits < BUCKETS ? bits : BUCKETS]++;
        if (self->threshold && taken > self->threshold && !error && !trap) {
            PyObject *done = PyObject_CallFunction(self->overran, "K", (unsigned long long)taken);
            if (done == NULL)
                return -1;
            Py_DECREF(done);
        }
    }
    if (error || trap) {
        PyObject *done = PyObject_CallFunction(self->ended, "KK", (unsigned long long)(uintptr_t)error,
                                               (unsigned long long)(uintptr_t)trap);
        if (done == NULL)
            return -1;
        Py_DECREF(done);
        return 0;
    }
    if (self->writable) {
        memcpy(context->buf, self->region, (size_t)self->size);
        if (self->most && data && data->len)
            memcpy(data->buf, self->data_region, (size_t)data->len);
    }
    *result = (int64_t)values[0].low;
    return 1;
}

/* The buffers of a hook's arguments: 0, or -1 with an exception. */
static int take(PyObject *const *arguments, Py_ssize_t count, int writable, Py_buffer *context, Py_buffer *data)
{
    int flags = writable ? PyBUF_WRITABLE : PyBUF_SIMPLE;
    if (count < 1 || count > 2) {
        PyErr_SetString(PyExc_TypeError, "a hook takes a context, and data where it has a region for that");
        return -1;
    }
    if (PyObject_GetBuffer(arguments[0], context, flags))
        goto failed;
    data->obj = NULL;
    if (count == 2 && PyObject_GetBuffer(arguments[1], data, flags)) {
        PyBuffer_Release(context);
        goto failed;
    }
    return 0;
failed:
    if (PyErr_ExceptionMatches(PyExc_BufferError)) {
        PyErr_Clear();
        PyErr_SetString(PyExc_TypeError, "the buffers of a writable hook must be writable");
    }
    return -1;
}

static PyObject *call_call(Call *self, PyObject *arguments, PyObject *named)
{
    Py_buffer context, data;
    int64_t result;
    Py_ssize_t count = PyTuple_GET_SIZE(arguments);
    PyObject *given[2] = {count > 0 ? PyTuple_GET_ITEM(arguments, 0) : NULL,
                          count > 1 ? PyTuple_GET_ITEM(arguments, 1) : NULL};
    if (named && PyDict_GET_SIZE(named)) {
        PyErr_SetString(PyExc_TypeError, "a codelet takes no named arguments");
        return NULL;
    }
    if (take(given, count, self->writable, &context, &data))
        return NULL;
    int how = call_run(self, &context, data.obj ? &data : NULL, &result);
    PyBuffer_Release(&context);
    PyBuffer_Release(&data);
    if (how < 0)
        return NULL;
    if (how == 0)
        Py_RETURN_NONE;
    return PyLong_FromLongLong(result);
}

static PyObject *call_times(Call *self, void *unused)
{
    PyObject *list = PyList_New(BUCKETS + 1);
    for (int number = 0; list && number <= BUCKETS; number++) {
        PyObject *value = PyLong_FromUnsignedLongLong(self->times[number]);
        if (value == NULL)
            Py_CLEAR(list);
        else
            PyList_SET_ITEM(list, number, value);
    }
    return list;
}

static PyMemberDef call_members[] = {
    {"calls", T_ULONGLONG, offsetof(Call, calls), READONLY, "how often it was called"}, {NULL}};
static PyGetSetDef call_getset[] = {
    {"times", (getter)call_times, NULL, "timed calls: number n took less than 2**n nanoseconds", NULL}, {NULL}};
static PyType_Slot call_slots[] = {
    {Py_tp_doc, "What runs one codelet once."}, {Py_tp_new, call_new},       {Py_tp_dealloc, call_dealloc},
    {Py_tp_traverse, call_traverse},            {Py_tp_clear, call_clear},   {Py_tp_call, call_call},
    {Py_tp_members, call_members},              {Py_tp_getset, call_getset}, {0, NULL}};
static PyType_Spec call_spec = {"codelets._fast.Call", sizeof(Call), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                call_slots};

typedef struct {
    PyObject_HEAD
    vectorcallfunc vectorcall;
    PyTypeObject *call_type;
    PyObject *runs, *type;
    long long preset;
    int control, writable;
    unsigned long long calls;
} Hook;

static PyObject *hook_vectorcall(Hook *self, PyObject *const *arguments, size_t flags, PyObject *names)
{
    PyObject *runs = self->runs;
    Py_ssize_t many = PyTuple_GET_SIZE(runs);
    if (many == 0) {
        if (self->control)
            return PyLong_FromLongLong(self->preset);
        Py_RETURN_NONE;
    }
    Py_ssize_t count = PyVectorcall_NARGS(flags);
    if (names && PyTuple_GET_SIZE(names)) {
        PyErr_SetString(PyExc_TypeError, "a hook takes no named arguments");
        return NULL;
    }
    Py_buffer context, data;
    if (take(arguments, count, self->writable, &context, &data))
        return NULL;
    Py_INCREF(runs); /* another thread may replace it while a helper runs */
    self->calls++;
    int how = 0;
    int64_t result = 0;
    for (Py_ssize_t number = 0; number < many && how >= 0; number++) {
        PyObject *run = PyTuple_GET_ITEM(runs, number);
        if (Py_TYPE(run) == self->call_type) {
            how = call_run((Call *)run, &context, data.obj ? &data : NULL, &result);
        } else { /* one that a guard is around, which is Python */
            PyObject *found = PyObject_Vectorcall(run, arguments, (size_t)count, NULL);
            how = found == NULL ? -1 : found != Py_None;
            if (how > 0)
                result = PyLong_AsLongLong(found);
            Py_XDECREF(found);
        }
    }
    Py_DECREF(runs);
    PyBuffer_Release(&context);
    PyBuffer_Release(&data);
    if (how < 0)
        return NULL;
    if (self->control)
        return PyLong_FromLongLong(how ? result : self->preset);
    Py_RETURN_NONE;
}

static int hook_traverse(Hook *self, visitproc visit, void *arg)
{
    Py_VISIT(self->runs);
    Py_VISIT(self->type);
    Py_VISIT(self->call_type);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int hook_clear(Hook *self)
{
    Py_CLEAR(self->type);
    return 0;
}

static void hook_dealloc(Hook *self)
{
    PyTypeObject *type = Py_TYPE(self);
    PyObject_GC_UnTrack(self);
    Py_CLEAR(self->runs);
    Py_CLEAR(self->type);
    Py_CLEAR(self->call_type);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *hook_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"call_type", "type", "default", "control", "writable", NULL};
    PyTypeObject *call_type;
    PyObject *kind;
    long long preset;
    int control, writable;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O!OLpp", names, &PyType_Type, &call_type, &kind, &preset,
                                     &control, &writable))
        return NULL;
    Hook *self = (Hook *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = (vectorcallfunc)hook_vectorcall;
    self->call_type = (PyTypeObject *)Py_NewRef(call_type);
    self->type = Py_NewRef(kind);
    self->preset = preset, self->control = control, self->writable = writable;
    self->runs = PyTuple_New(0);
    if (self->runs == NULL) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static PyObject *hook_replace(Hook *self, PyObject *runs)
{
    if (!PyTuple_CheckExact(runs)) {
        PyErr_SetString(PyExc_TypeError, "it must be a tuple");
        return NULL;
    }
    PyObject *before = self->runs;
    self->runs = Py_NewRef(runs);
    Py_DECREF(before);
    Py_RETURN_NONE;
}

static PyMethodDef hook_methods[] = {
    {"replace", (PyCFunction)hook_replace, METH_O, "What runs from the next call on."}, {NULL}};
static PyMemberDef hook_members[] = {
    {"calls", T_ULONGLONG, offsetof(Hook, calls), READONLY, "how often it was called with codelets loaded"},
    {"type", T_OBJECT_EX, offsetof(Hook, type), READONLY, "its HookType"},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, vectorcall), READONLY, NULL},
    {NULL}};
static PyType_Slot hook_slots[] = {
    {Py_tp_doc, "A place in an application where codelets run: hook(context), or hook(context, data)."},
    {Py_tp_new, hook_new},           {Py_tp_dealloc, hook_dealloc}, {Py_tp_traverse, hook_traverse},
    {Py_tp_clear, hook_clear},       {Py_tp_methods, hook_methods}, {Py_tp_members, hook_members},
    {Py_tp_call, PyVectorcall_Call}, {0, NULL}};
static PyType_Spec hook_spec = {"codelets._fast.Hook", sizeof(Hook), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_HAVE_VECTORCALL, hook_slots};

static int add(PyObject *module, const char *name, PyType_Spec *spec)
{
    PyObject *type = PyType_FromSpec(spec);
    int failed = type == NULL || PyModule_AddObjectRef(module, name, type);
    Py_XDECREF(type);
    return failed ? -1 : 0;
}

static int fill(PyObject *module)
{
    return add(module, "Call", &call_spec) || add(module, "Hook", &hook_spec) ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_fast", "Calls of codelets, in C.", 0, NULL, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void)
{
    return PyModuleDef_Init(&definition);
}
