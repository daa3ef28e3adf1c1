/** metav1.Status: how an apiserver says that something went wrong. */

/** One wrong field of an object, as field.Error of k8s.io/apimachinery prints it. */
export interface FieldError {
  readonly field: string;
  readonly reason:
    | 'FieldValueRequired'
    | 'FieldValueInvalid'
    | 'FieldValueDuplicate'
    | 'FieldValueNotFound'
    | 'FieldValueNotSupported'
    | 'FieldValueForbidden';
  readonly message: string;
}

/** Thrown by every part of the development apiserver; becomes the HTTP answer. */
export class StatusError extends Error {
  readonly code: number;
  readonly reason: string;
  readonly details: object | undefined;

  constructor(code: number, reason: string, message: string, details?: object) {
    super(message);
    this.code = code;
    this.reason = reason;
    this.details = details;
  }

  toJSON(): object {
    const { message, reason, details, code } = this;
    return {
      kind: 'Status',
      apiVersion: 'v1',
      metadata: {},
      status: 'Failure',
      message,
      reason,
      details,
      code,
    };
  }
}

/** What a resource is called in messages: `pods`, `leases.coordination.k8s.io`. */
export interface ResourceName {
  readonly plural: string;
  readonly kind: string;
  readonly group: string;
}

const qualified = ({ plural, group }: ResourceName) => (group === '' ? plural : `${plural}.${group}`);
const details = (resource: ResourceName, name: string) => ({
  name,
  group: resource.group || undefined,
  kind: resource.plural,
});

export const badRequest = (message: string) => new StatusError(400, 'BadRequest', message);

export const forbidden = (resource: ResourceName, name: string, why: string) =>
  new StatusError(
    403,
    'Forbidden',
    `${qualified(resource)} "${name}" is forbidden: ${why}`,
    details(resource, name),
  );

export const notFound = (resource: ResourceName, name: string) =>
  new StatusError(404, 'NotFound', `${qualified(resource)} "${name}" not found`, details(resource, name));

export const noSuchPath = () =>
  new StatusError(404, 'NotFound', 'the server could not find the requested resource', {});

export const methodNotAllowed = () =>
  new StatusError(
    405,
    'MethodNotAllowed',
    'the server does not allow this method on the requested resource',
    {},
  );

export const alreadyExists = (resource: ResourceName, name: string) =>
  new StatusError(
    409,
    'AlreadyExists',
    `${qualified(resource)} "${name}" already exists`,
    details(resource, name),
  );

export const conflict = (resource: ResourceName, name: string, why: string) =>
  new StatusError(
    409,
    'Conflict',
    `Operation cannot be fulfilled on ${qualified(resource)} "${name}": ${why}`,
    details(resource, name),
  );

export const expired = (message: string) => new StatusError(410, 'Expired', message);

export function invalid(resource: ResourceName, name: string, errors: readonly FieldError[]): StatusError {
  const texts = errors.map(({ field, message }) => `${field}: ${message}`);
  const listed = texts.length === 1 ? texts[0]! : `[${texts.join(', ')}]`;
  return new StatusError(422, 'Invalid', `${resource.kind} "${name}" is invalid: ${listed}`, {
    name,
    group: resource.group || undefined,
    kind: resource.kind,
    causes: errors,
  });
}

export const unsupportedMediaType = (type: string) =>
  new StatusError(
    415,
    'UnsupportedMediaType',
    `the body of the request was in an unknown format - accepted media types include: application/json (got ${type})`,
  );
