"""A P-256 key made, used and written by OpenSSL's libcrypto, the very one that `_ssl` has loaded for TLS.

Its private part is in libcrypto's memory alone, never in an object of Python's, which could not be wiped; and no
program is executed for it. Functions of OpenSSL 3.0 that are no macros there and take no variable arguments.
Import rule: `_ctypes` and `_ssl` (`ctypes` would be 4 ms more) and the light part of keep_protocol.
"""

from __future__ import annotations

import _ctypes
import _ssl

from keep_protocol.errors import ErrorKind, KeepfleetError

_RTLD_NOW = 2
_SHARED = "libcrypto.so.3"
"""Where `_ssl` is no file of its own, or holds an OpenSSL that shows none of its functions (uv's interpreters)."""
_PUBLIC_BYTES, _SIGNATURE_BYTES, _ERROR_BYTES = 128, 128, 256
"""A P-256 key's SubjectPublicKeyInfo is 91 bytes, an ECDSA signature 72 at most."""


class _Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg] # what ctypes.c_void_p is: None, bytes, arrays, addresses
    _type_ = "P"


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Size(_ctypes._SimpleCData):  # type: ignore[type-arg] # size_t and unsigned long: one width on Linux
    _type_ = "L"


class _Byte(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "B"


_P, _I, _S = _Pointer, _Int, _Size
_FUNCTIONS: dict[str, tuple[type, tuple[type, ...]]] = {
    "EVP_PKEY_CTX_new_from_name": (_P, (_P, _P, _P)),
    "EVP_PKEY_keygen_init": (_I, (_P,)),
    "EVP_PKEY_CTX_set_group_name": (_I, (_P, _P)),
    "EVP_PKEY_generate": (_I, (_P, _P)),
    "EVP_PKEY_CTX_free": (_I, (_P,)),
    "EVP_PKEY_free": (_I, (_P,)),
    "i2d_PUBKEY": (_I, (_P, _P)),
    "EVP_MD_CTX_new": (_P, ()),
    "EVP_DigestSignInit_ex": (_I, (_P, _P, _P, _P, _P, _P, _P)),
    "EVP_DigestSign": (_I, (_P, _P, _P, _P, _S)),
    "EVP_MD_CTX_free": (_I, (_P,)),
    "BIO_new_fd": (_P, (_I, _I)),
    "PEM_write_bio_PrivateKey": (_I, (_P, _P, _P, _P, _I, _P, _P)),
    "BIO_free": (_I, (_P,)),
    "ERR_get_error": (_S, ()),
    "ERR_error_string_n": (_I, (_S, _P, _S)),
}
"""What each returns, and takes: man EVP_PKEY_keygen and so on. Of a function without a result the int is not read."""


def _cannot(why: str, kind: ErrorKind = ErrorKind.CERTIFICATE) -> KeepfleetError:
    return KeepfleetError(kind, f"cannot make the keep's certificate: {why}")


class Libcrypto:
    """The library. `call` makes a call that must succeed."""

    def __init__(self, names: tuple[str | None, ...] = (getattr(_ssl, "__file__", None), _SHARED)) -> None:
        """Raises KeepfleetError(CONFIGURATION) when none of these libraries has, or brings, what is needed."""
        reasons = []
        for name in filter(None, names):
            try:
                handle = _ctypes.dlopen(name, _RTLD_NOW)
                self._functions = {name: _function(handle, name) for name in _FUNCTIONS}
                return
            except OSError as error:
                reasons.append(str(error))
        why = f"OpenSSL 3's libcrypto is not there ({'; '.join(reasons)}); install it: apt-get install libssl3"
        raise _cannot(why, ErrorKind.CONFIGURATION)

    def __repr__(self) -> str:
        return f"Libcrypto({len(self._functions)} functions)"

    def call(self, name: str, *arguments: object) -> int:
        """What `name` returned. Raises KeepfleetError(CERTIFICATE) where that is nothing, zero or negative."""
        result: int | None = self._functions[name](*arguments)
        if result is None or result <= 0:
            raise _cannot(f"{name}: {self._last_error()}")
        return result

    def free(self, name: str, pointer: int | None) -> None:
        """Calls `name`, which frees what is there."""
        self._functions[name](pointer)

    def _last_error(self) -> str:
        """The oldest error that is queued, as OpenSSL writes it; the queue is emptied for what comes after."""
        text = (_Byte * _ERROR_BYTES)()
        first = code = self._functions["ERR_get_error"]()
        while code:
            code = self._functions["ERR_get_error"]()
        self._functions["ERR_error_string_n"](first, text, _ERROR_BYTES)
        return bytes(text).partition(b"\0")[0].decode("ascii", "backslashreplace")


def _function(handle: int, name: str) -> _ctypes.CFuncPtr:
    returned, taken = _FUNCTIONS[name]
    members = {"_flags_": _ctypes.FUNCFLAG_CDECL, "_restype_": returned, "_argtypes_": taken}
    kind: type[_ctypes.CFuncPtr] = type(name, (_ctypes.CFuncPtr,), members)
    return kind(_ctypes.dlsym(handle, name))


class Key:
    """A new key. public: its SubjectPublicKeyInfo in DER. `close` wipes and frees it."""

    def __init__(self, library: Libcrypto) -> None:
        """Raises KeepfleetError(CERTIFICATE)."""
        self._library = library
        key = _Pointer()
        context = library.call("EVP_PKEY_CTX_new_from_name", None, b"EC", None)
        try:
            library.call("EVP_PKEY_keygen_init", context)
            library.call("EVP_PKEY_CTX_set_group_name", context, b"P-256")
            library.call("EVP_PKEY_generate", context, _ctypes.byref(key))
        finally:
            library.free("EVP_PKEY_CTX_free", context)
        self._key: int | None = key.value
        self.public = self._public()

    def __repr__(self) -> str:
        return f"Key({'open' if self._key else 'closed'})"

    def _public(self) -> bytes:
        length = self._library.call("i2d_PUBKEY", self._key, None)
        if length > _PUBLIC_BYTES:
            raise _cannot(f"its public key has {length} bytes")
        text = (_Byte * length)()
        place = _Pointer(_ctypes.addressof(text))
        self._library.call("i2d_PUBKEY", self._key, _ctypes.byref(place))
        return bytes(text)

    def sign(self, data: bytes) -> bytes:
        """The ECDSA signature of the SHA-256 of `data`, in DER. Raises KeepfleetError(CERTIFICATE)."""
        signature, length = (_Byte * _SIGNATURE_BYTES)(), _Size(_SIGNATURE_BYTES)
        context = self._library.call("EVP_MD_CTX_new")
        try:
            self._library.call("EVP_DigestSignInit_ex", context, None, b"SHA256", None, None, self._key, None)
            self._library.call("EVP_DigestSign", context, signature, _ctypes.byref(length), data, len(data))
        finally:
            self._library.free("EVP_MD_CTX_free", context)
        return bytes(signature)[: length.value]

    def write(self, descriptor: int) -> None:
        """Writes the private key in PEM (PKCS #8) to the file. Raises KeepfleetError(CERTIFICATE)."""
        file = self._library.call("BIO_new_fd", descriptor, 0)
        try:
            self._library.call("PEM_write_bio_PrivateKey", file, self._key, None, None, 0, None, None)
        finally:
            self._library.free("BIO_free", file)

    def close(self) -> None:
        """Wipes the key. May be called twice."""
        self._library.free("EVP_PKEY_free", self._key)
        self._key = None
