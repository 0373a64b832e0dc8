/* A stand-in for libnvidia-ml.so.1: NVML's calls over a table of GPUs in an mmap'ed file.
 *
 * The file named by FLYBALL_NVML_STATE holds one header and one record per GPU. A simulator or a test
 * writes power, temperature, clocks and faults into it and reads caps out of it; any process that loads this
 * library sees the same GPUs through NVML. `state.py` declares the same records as NumPy dtypes and
 * `flyball_emulator_layout` lets a test compare the two. Fields are 8-byte aligned, so that each is read and
 * written whole without a lock. Units are SI in the file; milliwatts and millijoules exist only in the calls.
 *
 * Names, codes and structures follow the public NVML API reference (docs.nvidia.com/deploy/nvml-api).
 */
#include <fcntl.h>
#include <math.h>
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { /* nvmlReturn_t */
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NO_PERMISSION = 4,
    NOT_FOUND = 6,
    INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9,
    TIMEOUT = 10,
    FUNCTION_NOT_FOUND = 13,
    GPU_IS_LOST = 15,
    VERSION_MISMATCH = 18,
    ARGUMENT_VERSION_MISMATCH = 25,
};

#define MAGIC 0x31304c4d56594c46ull /* "FLYVML01", little-endian */
#define VERSION 1
#define EVENTS 16

enum { /* header.missing: functions that an old driver lacks */
    MISSING_FIELD_VALUES = 1,
    MISSING_EVENTS = 2,
    MISSING_MARGIN_TEMPERATURE = 4,
    MISSING_POWER_V2 = 8,
};

typedef struct {
    uint64_t magic;
    uint64_t version;
    uint64_t gpus;
    uint64_t missing;
    uint64_t init_calls;
    char driver_version[32];
} Header;

typedef struct {
    /* written by the plant */
    double power_w;      /* mean of the last second */
    double power_now_w;  /* instantaneous */
    double energy_j;
    double temp_c;
    double mem_temp_c;
    double util_frac;
    double mem_util_frac;
    double sm_clock_mhz;
    double sm_clock_max_mhz;
    double mem_clock_mhz;
    double mem_clock_max_mhz;
    double mem_total_bytes;
    double mem_used_bytes;
    double slowdown_c;
    double shutdown_c;
    double power_violation_s;
    double thermal_violation_s;
    double hw_thermal_violation_s;
    double brake_violation_s;
    uint64_t event_reasons; /* beyond those that follow from power and clock */
    uint64_t ecc_corrected;
    uint64_t ecc_uncorrected;
    uint64_t recovery_action;
    /* limits; cap_w is written through NVML */
    double cap_w;
    double cap_min_w;
    double cap_max_w;
    double cap_default_w;
    double out_of_band_w; /* a BMC's limit; the tightest wins */
    double locked_clock_mhz; /* ceiling, 0 for none */
    uint64_t has_persistence;
    uint64_t has_mig;
    /* faults */
    uint64_t is_lost;
    uint64_t is_forbidden;
    uint64_t is_write_ignored;
    uint64_t has_thresholds; /* 0: thermal margins instead of thresholds, as on newer parts */
    /* events: a ring; each event set keeps its own tail */
    uint64_t event_head;
    uint64_t event_type[EVENTS];
    uint64_t event_data[EVENTS];
    /* calls that would write, counted whether they succeed or not */
    uint64_t set_power_calls;
    uint64_t set_clock_calls;
    uint64_t set_mode_calls;
    /* identity */
    char uuid[48];
    char name[64];
    char serial[32];
    char bus_id[32];
} Gpu;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static Header *header;
static size_t mapped;
static unsigned references;

static Gpu *table(void) { return (Gpu *)(header + 1); }

EXPORT size_t flyball_emulator_layout(uint64_t *out, size_t room) {
    const uint64_t values[] = {
        VERSION, sizeof(Header), sizeof(Gpu),
        offsetof(Header, missing), offsetof(Header, init_calls), offsetof(Header, driver_version),
        offsetof(Gpu, power_w), offsetof(Gpu, power_now_w), offsetof(Gpu, energy_j), offsetof(Gpu, temp_c),
        offsetof(Gpu, mem_temp_c), offsetof(Gpu, util_frac), offsetof(Gpu, mem_util_frac),
        offsetof(Gpu, sm_clock_mhz), offsetof(Gpu, sm_clock_max_mhz), offsetof(Gpu, mem_clock_mhz),
        offsetof(Gpu, mem_clock_max_mhz), offsetof(Gpu, mem_total_bytes), offsetof(Gpu, mem_used_bytes),
        offsetof(Gpu, slowdown_c), offsetof(Gpu, shutdown_c), offsetof(Gpu, power_violation_s),
        offsetof(Gpu, thermal_violation_s), offsetof(Gpu, hw_thermal_violation_s),
        offsetof(Gpu, brake_violation_s), offsetof(Gpu, event_reasons), offsetof(Gpu, ecc_corrected),
        offsetof(Gpu, ecc_uncorrected), offsetof(Gpu, recovery_action), offsetof(Gpu, cap_w),
        offsetof(Gpu, cap_min_w), offsetof(Gpu, cap_max_w), offsetof(Gpu, cap_default_w),
        offsetof(Gpu, out_of_band_w), offsetof(Gpu, locked_clock_mhz), offsetof(Gpu, has_persistence),
        offsetof(Gpu, has_mig), offsetof(Gpu, is_lost), offsetof(Gpu, is_forbidden),
        offsetof(Gpu, is_write_ignored), offsetof(Gpu, has_thresholds), offsetof(Gpu, event_head),
        offsetof(Gpu, event_type), offsetof(Gpu, event_data), offsetof(Gpu, set_power_calls),
        offsetof(Gpu, set_clock_calls), offsetof(Gpu, set_mode_calls), offsetof(Gpu, uuid),
        offsetof(Gpu, name), offsetof(Gpu, serial), offsetof(Gpu, bus_id),
    };
    size_t n = sizeof values / sizeof values[0];
    for (size_t i = 0; i < n && i < room; i++) out[i] = values[i];
    return n;
}

/* ── library ─────────────────────────────────────────────────────────────────────────────────────────── */
static int map_state(void) {
    const char *path = getenv("FLYBALL_NVML_STATE");
    if (!path) return DRIVER_NOT_LOADED;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return DRIVER_NOT_LOADED;
    struct stat st;
    if (fstat(fd, &st) || (size_t)st.st_size < sizeof(Header)) {
        close(fd);
        return DRIVER_NOT_LOADED;
    }
    Header *h = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (h == MAP_FAILED) return DRIVER_NOT_LOADED;
    if (h->magic != MAGIC || h->version != VERSION ||
        sizeof(Header) + h->gpus * sizeof(Gpu) > (size_t)st.st_size) {
        munmap(h, (size_t)st.st_size);
        return VERSION_MISMATCH;
    }
    header = h;
    mapped = (size_t)st.st_size;
    return SUCCESS;
}

EXPORT int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    pthread_mutex_lock(&lock);
    int ret = header ? SUCCESS : map_state();
    if (ret == SUCCESS) {
        references++;
        __atomic_add_fetch(&header->init_calls, 1, __ATOMIC_RELAXED);
    }
    pthread_mutex_unlock(&lock);
    return ret;
}
EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void) {
    pthread_mutex_lock(&lock);
    int ret = references ? SUCCESS : UNINITIALIZED;
    if (references && --references == 0) {
        munmap(header, mapped);
        header = NULL;
    }
    pthread_mutex_unlock(&lock);
    return ret;
}

EXPORT const char *nvmlErrorString(int code) {
    switch (code) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NO_PERMISSION: return "Insufficient Permissions";
        case NOT_FOUND: return "Not Found";
        case INSUFFICIENT_SIZE: return "Insufficient Size";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        case TIMEOUT: return "Timeout";
        case FUNCTION_NOT_FOUND: return "Function Not Found";
        case GPU_IS_LOST: return "GPU is lost";
        case VERSION_MISMATCH: return "RM has detected an NVML/RM version mismatch";
        case ARGUMENT_VERSION_MISMATCH: return "Argument version mismatch";
        default: return "Unknown Error";
    }
}

static int copy_text(char *out, unsigned room, const char *text) {
    size_t n = strlen(text) + 1;
    if (!out) return INVALID_ARGUMENT;
    if (room < n) return INSUFFICIENT_SIZE;
    memcpy(out, text, n);
    return SUCCESS;
}

EXPORT int nvmlSystemGetDriverVersion(char *out, unsigned room) {
    return header ? copy_text(out, room, header->driver_version) : UNINITIALIZED;
}
EXPORT int nvmlSystemGetNVMLVersion(char *out, unsigned room) {
    if (!header) return UNINITIALIZED;
    char text[48];
    snprintf(text, sizeof text, "13.%s", header->driver_version);
    return copy_text(out, room, text);
}

/* ── handles and identity ────────────────────────────────────────────────────────────────────────────── */
static int check(const Gpu *g) {
    if (!header) return UNINITIALIZED;
    if (g < table() || g >= table() + header->gpus) return INVALID_ARGUMENT;
    return g->is_lost ? GPU_IS_LOST : SUCCESS;
}
#define CHECK(g)                 \
    do {                         \
        int ret_ = check(g);     \
        if (ret_) return ret_;   \
    } while (0)

EXPORT int nvmlDeviceGetCount_v2(unsigned *n) {
    if (!header) return UNINITIALIZED;
    *n = (unsigned)header->gpus;
    return SUCCESS;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, Gpu **out) {
    if (!header) return UNINITIALIZED;
    if (index >= header->gpus) return INVALID_ARGUMENT;
    *out = table() + index;
    return (*out)->is_lost ? GPU_IS_LOST : SUCCESS;
}
static int find(const char *text, size_t offset, Gpu **out) {
    if (!header) return UNINITIALIZED;
    if (!text) return INVALID_ARGUMENT;
    for (uint64_t i = 0; i < header->gpus; i++)
        if (!strcmp((const char *)(table() + i) + offset, text)) return nvmlDeviceGetHandleByIndex_v2(i, out);
    return NOT_FOUND;
}
EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, Gpu **out) { return find(uuid, offsetof(Gpu, uuid), out); }
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, Gpu **out) {
    return find(bus_id, offsetof(Gpu, bus_id), out);
}

EXPORT int nvmlDeviceGetUUID(Gpu *g, char *out, unsigned room) {
    CHECK(g);
    return copy_text(out, room, g->uuid);
}
EXPORT int nvmlDeviceGetName(Gpu *g, char *out, unsigned room) {
    CHECK(g);
    return copy_text(out, room, g->name);
}
EXPORT int nvmlDeviceGetSerial(Gpu *g, char *out, unsigned room) {
    CHECK(g);
    return copy_text(out, room, g->serial);
}
EXPORT int nvmlDeviceGetIndex(Gpu *g, unsigned *index) {
    CHECK(g);
    *index = (unsigned)(g - table());
    return SUCCESS;
}
EXPORT int nvmlDeviceGetMinorNumber(Gpu *g, unsigned *minor) { return nvmlDeviceGetIndex(g, minor); }

typedef struct {
    char bus_id_legacy[16];
    unsigned domain, bus, device, pci_device_id, pci_subsystem_id;
    char bus_id[32];
} PciInfo;
EXPORT int nvmlDeviceGetPciInfo_v3(Gpu *g, PciInfo *out) {
    CHECK(g);
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "%s", g->bus_id);
    sscanf(g->bus_id, "%x:%x:%x", &out->domain, &out->bus, &out->device);
    snprintf(out->bus_id_legacy, sizeof out->bus_id_legacy, "%04X:%02X:%02X.0", out->domain & 0xffffu,
             out->bus & 0xffu, out->device & 0xffu);
    return SUCCESS;
}

/* ── power ───────────────────────────────────────────────────────────────────────────────────────────── */
static unsigned milli(double value) { return value > 0 ? (unsigned)llround(value * 1000.0) : 0; }
static double enforced_w(const Gpu *g) { return g->out_of_band_w < g->cap_w ? g->out_of_band_w : g->cap_w; }

EXPORT int nvmlDeviceGetPowerUsage(Gpu *g, unsigned *mw) {
    CHECK(g);
    *mw = milli(g->power_w);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetPowerManagementLimit(Gpu *g, unsigned *mw) {
    CHECK(g);
    *mw = milli(g->cap_w);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetPowerManagementDefaultLimit(Gpu *g, unsigned *mw) {
    CHECK(g);
    *mw = milli(g->cap_default_w);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetEnforcedPowerLimit(Gpu *g, unsigned *mw) {
    CHECK(g);
    *mw = milli(enforced_w(g));
    return SUCCESS;
}
EXPORT int nvmlDeviceGetPowerManagementLimitConstraints(Gpu *g, unsigned *min_mw, unsigned *max_mw) {
    CHECK(g);
    *min_mw = milli(g->cap_min_w);
    *max_mw = milli(g->cap_max_w);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetTotalEnergyConsumption(Gpu *g, unsigned long long *mj) {
    CHECK(g);
    *mj = (unsigned long long)(g->energy_j * 1000.0);
    return SUCCESS;
}

static int set_power(Gpu *g, unsigned mw) {
    CHECK(g);
    __atomic_add_fetch(&g->set_power_calls, 1, __ATOMIC_RELAXED);
    if (g->is_forbidden) return NO_PERMISSION;
    if (mw < milli(g->cap_min_w) || mw > milli(g->cap_max_w)) return INVALID_ARGUMENT;
    if (!g->is_write_ignored) g->cap_w = mw / 1000.0;
    return SUCCESS;
}
EXPORT int nvmlDeviceSetPowerManagementLimit(Gpu *g, unsigned mw) { return set_power(g, mw); }

typedef struct {
    unsigned version, scope, mw;
} PowerValue;
EXPORT int nvmlDeviceSetPowerManagementLimit_v2(Gpu *g, PowerValue *value) {
    CHECK(g);
    if (header->missing & MISSING_POWER_V2) return FUNCTION_NOT_FOUND;
    if (value->version != 0x0200000Cu) return ARGUMENT_VERSION_MISMATCH;
    if (value->scope != 0) return NOT_SUPPORTED; /* scope 0 is the GPU; 1 module and 2 memory */
    return set_power(g, value->mw);
}

/* ── temperature, clocks, load ───────────────────────────────────────────────────────────────────────── */
EXPORT int nvmlDeviceGetTemperature(Gpu *g, unsigned sensor, unsigned *c) {
    CHECK(g);
    if (sensor != 0) return INVALID_ARGUMENT;
    *c = (unsigned)llround(g->temp_c);
    return SUCCESS;
}
typedef struct {
    unsigned version, sensor;
    int c;
} Temperature;
EXPORT int nvmlDeviceGetTemperatureV(Gpu *g, Temperature *out) {
    CHECK(g);
    if (out->version != 0x0100000Cu) return ARGUMENT_VERSION_MISMATCH;
    if (out->sensor != 0) return INVALID_ARGUMENT;
    out->c = (int)llround(g->temp_c);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetTemperatureThreshold(Gpu *g, unsigned kind, unsigned *c) {
    CHECK(g);
    if (!g->has_thresholds) return NOT_SUPPORTED;
    if (kind > 1) return NOT_SUPPORTED;
    *c = (unsigned)llround(kind == 0 ? g->shutdown_c : g->slowdown_c);
    return SUCCESS;
}
typedef struct {
    unsigned version;
    int margin_c;
} Margin;
EXPORT int nvmlDeviceGetMarginTemperature(Gpu *g, Margin *out) {
    CHECK(g);
    if (header->missing & MISSING_MARGIN_TEMPERATURE) return FUNCTION_NOT_FOUND;
    if (out->version != 0x01000008u) return ARGUMENT_VERSION_MISMATCH;
    out->margin_c = (int)llround(g->slowdown_c - g->temp_c);
    return SUCCESS;
}

static int clock_of(Gpu *g, unsigned kind, double sm, double mem, unsigned *mhz) {
    CHECK(g);
    if (kind > 3) return INVALID_ARGUMENT; /* graphics, SM, memory, video */
    *mhz = (unsigned)llround(kind == 2 ? mem : sm);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetClockInfo(Gpu *g, unsigned kind, unsigned *mhz) {
    return clock_of(g, kind, g->sm_clock_mhz, g->mem_clock_mhz, mhz);
}
EXPORT int nvmlDeviceGetMaxClockInfo(Gpu *g, unsigned kind, unsigned *mhz) {
    return clock_of(g, kind, g->sm_clock_max_mhz, g->mem_clock_max_mhz, mhz);
}
EXPORT int nvmlDeviceSetGpuLockedClocks(Gpu *g, unsigned min_mhz, unsigned max_mhz) {
    CHECK(g);
    __atomic_add_fetch(&g->set_clock_calls, 1, __ATOMIC_RELAXED);
    if (g->is_forbidden) return NO_PERMISSION;
    if (min_mhz > max_mhz) return INVALID_ARGUMENT;
    if (!g->is_write_ignored) g->locked_clock_mhz = max_mhz;
    return SUCCESS;
}
EXPORT int nvmlDeviceResetGpuLockedClocks(Gpu *g) {
    CHECK(g);
    __atomic_add_fetch(&g->set_clock_calls, 1, __ATOMIC_RELAXED);
    if (g->is_forbidden) return NO_PERMISSION;
    if (!g->is_write_ignored) g->locked_clock_mhz = 0;
    return SUCCESS;
}

typedef struct {
    unsigned gpu, memory;
} Utilization;
EXPORT int nvmlDeviceGetUtilizationRates(Gpu *g, Utilization *out) {
    CHECK(g);
    out->gpu = (unsigned)llround(g->util_frac * 100);
    out->memory = (unsigned)llround(g->mem_util_frac * 100);
    return SUCCESS;
}
typedef struct {
    unsigned long long total, free, used;
} Memory;
EXPORT int nvmlDeviceGetMemoryInfo(Gpu *g, Memory *out) {
    CHECK(g);
    out->total = (unsigned long long)g->mem_total_bytes;
    out->used = (unsigned long long)g->mem_used_bytes;
    out->free = out->total - out->used;
    return SUCCESS;
}
typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} MemoryV2;
EXPORT int nvmlDeviceGetMemoryInfo_v2(Gpu *g, MemoryV2 *out) {
    CHECK(g);
    if (out->version != 0x02000028u) return ARGUMENT_VERSION_MISMATCH;
    Memory v1;
    nvmlDeviceGetMemoryInfo(g, &v1);
    out->total = v1.total, out->reserved = 0, out->free = v1.free, out->used = v1.used;
    return SUCCESS;
}

/* A GPU at its cap with its clock below the maximum is capped; one that does nothing is idle. */
static uint64_t reasons(const Gpu *g) {
    uint64_t out = g->event_reasons;
    if (g->util_frac < 0.005) out |= 0x1;
    if (g->power_now_w >= 0.97 * enforced_w(g) && g->sm_clock_mhz < g->sm_clock_max_mhz) out |= 0x4;
    if (g->temp_c >= g->slowdown_c) out |= 0x20;
    return out;
}
EXPORT int nvmlDeviceGetCurrentClocksEventReasons(Gpu *g, unsigned long long *out) {
    CHECK(g);
    *out = reasons(g);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetCurrentClocksThrottleReasons(Gpu *g, unsigned long long *out) {
    return nvmlDeviceGetCurrentClocksEventReasons(g, out);
}
EXPORT int nvmlDeviceGetPerformanceState(Gpu *g, unsigned *state) {
    CHECK(g);
    *state = 0;
    return SUCCESS;
}

/* ── health and modes ────────────────────────────────────────────────────────────────────────────────── */
EXPORT int nvmlDeviceGetTotalEccErrors(Gpu *g, unsigned kind, unsigned counter, unsigned long long *count) {
    CHECK(g);
    if (kind > 1 || counter > 1) return INVALID_ARGUMENT;
    *count = kind == 0 ? g->ecc_corrected : g->ecc_uncorrected;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetPersistenceMode(Gpu *g, unsigned *mode) {
    CHECK(g);
    *mode = (unsigned)g->has_persistence;
    return SUCCESS;
}
EXPORT int nvmlDeviceSetPersistenceMode(Gpu *g, unsigned mode) {
    CHECK(g);
    __atomic_add_fetch(&g->set_mode_calls, 1, __ATOMIC_RELAXED);
    if (g->is_forbidden) return NO_PERMISSION;
    if (!g->is_write_ignored) g->has_persistence = mode != 0;
    return SUCCESS;
}
EXPORT int nvmlDeviceGetMigMode(Gpu *g, unsigned *current, unsigned *pending) {
    CHECK(g);
    *current = *pending = (unsigned)g->has_mig;
    return SUCCESS;
}

/* ── field values ────────────────────────────────────────────────────────────────────────────────────── */
typedef struct {
    unsigned field, scope;
    int64_t timestamp_us, latency_us;
    unsigned kind, ret; /* kind: 0 double, 1 unsigned int, 3 unsigned long long, 5 signed int */
    union {
        double d;
        unsigned ui;
        unsigned long long ull;
        int si;
    } value;
} FieldValue;

static void put(FieldValue *f, unsigned long long value) { f->kind = 3, f->value.ull = value; }
static void put_mw(FieldValue *f, double watts) { f->kind = 1, f->value.ui = milli(watts); }
static void put_margin(FieldValue *f, const Gpu *g, double from_c) {
    f->kind = 5, f->value.si = (int)llround(from_c - g->temp_c);
}
static void read_field(const Gpu *g, FieldValue *f) {
    f->ret = SUCCESS;
    f->value.ull = 0;
    switch (f->field) {
        case 1: put(f, 1); break; /* ECC is on */
        case 3: case 5: put(f, g->ecc_corrected); break;
        case 4: case 6: put(f, g->ecc_uncorrected); break;
        case 74: put(f, (unsigned long long)(g->power_violation_s * 1e9)); break;
        case 75: case 269: put(f, (unsigned long long)(g->thermal_violation_s * 1e9)); break;
        case 270: put(f, (unsigned long long)(g->hw_thermal_violation_s * 1e9)); break;
        case 271: put(f, (unsigned long long)(g->brake_violation_s * 1e9)); break;
        case 83: put(f, (unsigned long long)(g->energy_j * 1000.0)); break;
        case 185: put_mw(f, g->power_w); break;
        case 186: put_mw(f, g->power_now_w); break;
        case 187: put_mw(f, g->cap_min_w); break;
        case 188: put_mw(f, g->cap_max_w); break;
        case 189: put_mw(f, g->cap_default_w); break;
        case 190: put_mw(f, enforced_w(g)); break;
        case 191: case 192: put_mw(f, g->cap_w); break;
        case 193: put_margin(f, g, g->shutdown_c); break;
        case 194: case 195: case 196: put_margin(f, g, g->slowdown_c); break;
        case 230: f->kind = 1, f->value.ui = (unsigned)g->recovery_action; break;
        default: f->ret = NOT_SUPPORTED;
    }
}
EXPORT int nvmlDeviceGetFieldValues(Gpu *g, int n, FieldValue *values) {
    CHECK(g);
    if (header->missing & MISSING_FIELD_VALUES) return FUNCTION_NOT_FOUND;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    for (int i = 0; i < n; i++) {
        values[i].timestamp_us = (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
        values[i].latency_us = 0;
        read_field(g, &values[i]);
    }
    return SUCCESS;
}

/* ── events ──────────────────────────────────────────────────────────────────────────────────────────── */
typedef struct {
    uint64_t gpus;
    uint64_t *tail; /* next event of each GPU; events from before the registration are not delivered */
    uint64_t *types;
} EventSet;
typedef struct {
    Gpu *device;
    unsigned long long type, data;
    unsigned gpu_instance, compute_instance;
} EventData;

EXPORT int nvmlEventSetCreate(EventSet **out) {
    if (!header) return UNINITIALIZED;
    if (header->missing & MISSING_EVENTS) return FUNCTION_NOT_FOUND;
    EventSet *set = calloc(1, sizeof *set + 2 * header->gpus * sizeof(uint64_t));
    if (!set) return 20; /* NVML_ERROR_MEMORY */
    set->gpus = header->gpus;
    set->tail = (uint64_t *)(set + 1);
    set->types = set->tail + set->gpus;
    *out = set;
    return SUCCESS;
}
EXPORT int nvmlEventSetFree(EventSet *set) {
    free(set);
    return SUCCESS;
}
EXPORT int nvmlDeviceGetSupportedEventTypes(Gpu *g, unsigned long long *types) {
    CHECK(g);
    *types = 0x1 | 0x2 | 0x8 | 0x4000 | 0x8000;
    return SUCCESS;
}
EXPORT int nvmlDeviceRegisterEvents(Gpu *g, unsigned long long types, EventSet *set) {
    CHECK(g);
    size_t i = (size_t)(g - table());
    if (!set->types[i]) set->tail[i] = __atomic_load_n(&g->event_head, __ATOMIC_ACQUIRE);
    set->types[i] |= types;
    return SUCCESS;
}
/* Events of a lost GPU are still delivered: they are what says that it was lost. */
static int next_event(EventSet *set, EventData *out) {
    for (uint64_t i = 0; i < set->gpus; i++) {
        Gpu *g = table() + i;
        uint64_t head = __atomic_load_n(&g->event_head, __ATOMIC_ACQUIRE);
        if (head - set->tail[i] > EVENTS) set->tail[i] = head - EVENTS;
        while (set->types[i] && set->tail[i] < head) {
            uint64_t slot = set->tail[i]++ % EVENTS;
            if (!(g->event_type[slot] & set->types[i])) continue;
            *out = (EventData){g, g->event_type[slot], g->event_data[slot], ~0u, ~0u};
            return 1;
        }
    }
    return 0;
}
EXPORT int nvmlEventSetWait_v2(EventSet *set, EventData *out, unsigned timeout_ms) {
    if (!header) return UNINITIALIZED;
    for (;; timeout_ms--) {
        if (next_event(set, out)) return SUCCESS;
        if (!timeout_ms) return TIMEOUT;
        nanosleep(&(struct timespec){0, 1000000}, NULL);
    }
}
