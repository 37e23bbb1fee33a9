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
#define INTERFACE 2 /* fast.INTERFACE: what its classes take; another with each change of that */

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
    const void *function; /* the entry's wasmtime_func_t: another one after each fault */
    uint64_t *repairing;  /* the thread that makes the set whole again after a fault, or 0 */
    char *region, *data_region;
    uint64_t region_at, data_at, fuel, calls, threshold, mask;
    Py_ssize_t size, most;
    int writable;
    uint64_t times[BUCKETS + 1];
    PyObject *kept;    /* what the addresses point into */
    PyObject *before;  /* called before each call, or NULL */
    PyObject *wait;    /* waits for the thread that repairs */
    PyObject *ended;   /* ended(error, trap) */
    PyObject *overran; /* overran(nanoseconds) */
} Call;

static int call_traverse(Call *self, visitproc visit, void *arg)
{
    Py_VISIT(self->kept);
    Py_VISIT(self->before);
    Py_VISIT(self->wait);
    Py_VISIT(self->ended);
    Py_VISIT(self->overran);
    Py_VISIT(Py_TYPE(self));
    return 0;
}

static int call_clear(Call *self)
{
    Py_CLEAR(self->kept);
    Py_CLEAR(self->before);
    Py_CLEAR(self->wait);
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
    static char *names[] = {"call", "set_fuel", "store", "function", "repairing", "region", "region_at", "size",
                            "data_region", "data_at", "most", "fuel", "writable", "threshold", "mask", "kept", "before",
                            "wait", "ended", "overran", NULL};
    unsigned long long call, set_fuel, store, function, repairing, region, region_at, data_region, data_at, fuel, threshold, mask;
    Py_ssize_t size, most;
    int writable;
    PyObject *kept, *before, *wait, *ended, *overran;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "$KKKKKKKnKKnKpKKOOOOO", names, &call, &set_fuel, &store,
                                     &function, &repairing, &region, &region_at, &size, &data_region, &data_at, &most,
                                     &fuel, &writable, &threshold, &mask, &kept, &before, &wait, &ended, &overran))
        return NULL;
    Call *self = (Call *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->call = (call_function)(uintptr_t)call;
    self->set_fuel = (fuel_function)(uintptr_t)set_fuel;
    self->store = (void *)(uintptr_t)store;
    self->function = (const void *)(uintptr_t)function;
    self->repairing = (uint64_t *)(uintptr_t)repairing;
    self->region = (char *)(uintptr_t)region;
    self->data_region = (char *)(uintptr_t)data_region;
    self->region_at = region_at, self->data_at = data_at, self->fuel = fuel;
    self->size = size, self->most = most, self->writable = writable;
    self->threshold = threshold, self->mask = mask;
    self->kept = Py_NewRef(kept), self->wait = Py_NewRef(wait), self->ended = Py_NewRef(ended), self->overran = Py_NewRef(overran);
    self->before = before == Py_None ? NULL : Py_NewRef(before);
    return (PyObject *)self;
}

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

/* 0, or -1 with an exception: what a call of Python gave. */
static int done(PyObject *called)
{
    Py_XDECREF(called);
    return called == NULL ? -1 : 0;
}

/* 0 when no other thread repairs the set, or -1 with an exception. */
static int wait_for_repair(Call *self)
{
    uint64_t mine = PyThread_get_thread_ident();
    while (*self->repairing && *self->repairing != mine)
        if (done(PyObject_CallNoArgs(self->wait)))
            return -1;
    return 0;
}

/* What comes after a fault is Python, which lets other threads run: they find the set as it was before. */
static int repair(Call *self, void *error, void *trap)
{
    uint64_t before = *self->repairing;
    *self->repairing = PyThread_get_thread_ident();
    int failed = done(PyObject_CallFunction(self->ended, "KK", (unsigned long long)(uintptr_t)error,
                                            (unsigned long long)(uintptr_t)trap));
    *self->repairing = before;
    return failed;
}

/* 1: *result is the codelet's; 0: it had a fault; -1: an exception is set. */
static int call_run(Call *self, Py_buffer *context, Py_buffer *data, int64_t *result)
{
    raw_value values[MAX_ARGUMENTS] = {{self->region_at, 0}, {self->data_at, 0}, {0, 0}};
    size_t count = 1;
    uint64_t taken = 0;
    void *trap = NULL, *error;
    if (context->len != self->size) {
        PyErr_Format(PyExc_ValueError, "the context has %zd bytes and not %zd", context->len, self->size);
        return -1;
    }
    if (*self->repairing && wait_for_repair(self))
        return -1;
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
    if (self->before && done(PyObject_CallNoArgs(self->before))) /* other threads may run, and a guard keeps them out */
        return -1;
    self->set_fuel(self->store, self->fuel);
    if (self->calls++ & self->mask) {
        error = self->call(self->store, self->function, values, count, &trap);
    } else {
        uint64_t begin = now();
        error = self->call(self->store, self->function, values, count, &trap);
        taken = now() - begin;
        int bits = taken ? 64 - __builtin_clzll(taken) : 0;
        self->times[bits < BUCKETS ? bits : BUCKETS]++;
    }
    if (error || trap)
        return repair(self, error, trap);
    if (self->writable) {
        memcpy(context->buf, self->region, (size_t)self->size);
        if (self->most && data && data->len)
            memcpy(data->buf, self->data_region, (size_t)data->len);
    }
    *result = (int64_t)values[0].low;
    /* the last, as other threads may run meanwhile and use the same region */
    if (self->threshold && taken > self->threshold &&
        done(PyObject_CallFunction(self->overran, "K", (unsigned long long)taken)))
        return -1;
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
    if (count == 2 && arguments[1] != Py_None && PyObject_GetBuffer(arguments[1], data, flags)) {
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
    PyObject *chains; /* a list of tuples, shared by all hooks of an application and assigned as a whole */
    Py_ssize_t place; /* this hook's in them */
    PyObject *type;
    long long preset;
    int control, writable;
    unsigned long long calls;
} Hook;

static PyObject *hook_vectorcall(Hook *self, PyObject *const *arguments, size_t flags, PyObject *names)
{
    /* the list is empty where garbage is collected */
    PyObject *runs = self->place < PyList_GET_SIZE(self->chains) ? PyList_GET_ITEM(self->chains, self->place) : NULL;
    Py_ssize_t many = runs ? PyTuple_GET_SIZE(runs) : 0;
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
    Py_INCREF(runs); /* another thread may replace it while a helper runs */
    if (take(arguments, count, self->writable, &context, &data)) {
        Py_DECREF(runs);
        return NULL;
    }
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
    Py_VISIT(self->chains);
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
    Py_CLEAR(self->chains);
    Py_CLEAR(self->type);
    Py_CLEAR(self->call_type);
    type->tp_free((PyObject *)self);
    Py_DECREF(type);
}

static PyObject *hook_new(PyTypeObject *type, PyObject *arguments, PyObject *named)
{
    static char *names[] = {"call_type", "type", "chains", "place", "default", "control", "writable", NULL};
    PyTypeObject *call_type;
    PyObject *kind, *chains;
    Py_ssize_t place;
    long long preset;
    int control, writable;
    if (!PyArg_ParseTupleAndKeywords(arguments, named, "O!OO!nLpp", names, &PyType_Type, &call_type, &kind,
                                     &PyList_Type, &chains, &place, &preset, &control, &writable))
        return NULL;
    if (place < 0 || place >= PyList_GET_SIZE(chains)) {
        PyErr_SetString(PyExc_IndexError, "it has no place in the chains");
        return NULL;
    }
    Hook *self = (Hook *)type->tp_alloc(type, 0);
    if (self == NULL)
        return NULL;
    self->vectorcall = (vectorcallfunc)hook_vectorcall;
    self->call_type = (PyTypeObject *)Py_NewRef(call_type);
    self->type = Py_NewRef(kind);
    self->chains = Py_NewRef(chains), self->place = place;
    self->preset = preset, self->control = control, self->writable = writable;
    return (PyObject *)self;
}

static PyMemberDef hook_members[] = {
    {"calls", T_ULONGLONG, offsetof(Hook, calls), READONLY, "how often it was called with codelets loaded"},
    {"type", T_OBJECT_EX, offsetof(Hook, type), READONLY, "its HookType"},
    {"__vectorcalloffset__", T_PYSSIZET, offsetof(Hook, vectorcall), READONLY, NULL},
    {NULL}};
static PyType_Slot hook_slots[] = {
    {Py_tp_doc, "A place in an application where codelets run: hook(context), or hook(context, data)."},
    {Py_tp_new, hook_new},           {Py_tp_dealloc, hook_dealloc}, {Py_tp_traverse, hook_traverse},
    {Py_tp_clear, hook_clear},       {Py_tp_members, hook_members}, {Py_tp_call, PyVectorcall_Call},
    {0, NULL}};
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
    return add(module, "Call", &call_spec) || add(module, "Hook", &hook_spec) ||
                   PyModule_AddIntMacro(module, INTERFACE)
               ? -1
               : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};
static PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_fast", "Calls of codelets, in C.", 0, NULL, slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__fast(void)
{
    return PyModuleDef_Init(&definition);
}
